// Kernel texts inside the library: includes expanded once, and the same as those of the checkout.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "core/error.h"
#include "core/kernel_text.h"

namespace {
using namespace fa;
namespace fs = std::filesystem;

int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) n++;
  return n;
}

// A src/ of our own, which FLASH_ATTENTION_KERNELS names.
class KernelText : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "kernel_text_XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    ::setenv("FLASH_ATTENTION_KERNELS", folder_.c_str(), 1);
  }
  void TearDown() override {
    ::unsetenv("FLASH_ATTENTION_KERNELS");
    fs::remove_all(folder_);
  }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path, std::ios::binary) << text;
  }
  static std::string error_of(const std::string& source) {
    try {
      kernel_text("gpu", source);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  fs::path folder_;
};

TEST_F(KernelText, EachIncludeIsExpandedOnceWhereItIsMetFirst) {
  write("gpu/kernels/a.cuh", "#include \"words/b.cuh\"\n  #  include \"semantics/c.h\" // again\n#include <library>\nint a;\n");
  write("gpu/kernels/words/b.cuh", "#pragma once\n#include \"semantics/c.h\"\nint b;");
  write("semantics/c.h", "#pragma once\n#include \"d.h\"\nint c;\n");
  write("semantics/d.h", "int d;\n");
  EXPECT_EQ(kernel_text("gpu", "a.cuh"),
            "#line 1 \"gpu/kernels/a.cuh\"\n"
            "#line 1 \"gpu/kernels/words/b.cuh\"\n\n"
            "#line 1 \"semantics/c.h\"\n\n"
            "#line 1 \"semantics/d.h\"\nint d;\n"
            "#line 3 \"semantics/c.h\"\nint c;\n"
            "#line 3 \"gpu/kernels/words/b.cuh\"\nint b;\n"
            "#line 2 \"gpu/kernels/a.cuh\"\n"
            "#line 3 \"gpu/kernels/a.cuh\"\n"
            "#include <library>\nint a;\n");
}

TEST_F(KernelText, WhatIsMissingIsNamed) {
  EXPECT_EQ(error_of("none.cuh"),
            text("[kernel_text] source: expected a kernel file, found no gpu/kernels/none.cuh in FLASH_ATTENTION_KERNELS=",
                 folder_.string(), "."));
  write("gpu/kernels/a.cuh", "\n#include \"b.cuh\"\n");
  EXPECT_EQ(error_of("a.cuh"), "[kernel_text] source: gpu/kernels/a.cuh:2 includes b.cuh, found none.");
}

TEST_F(KernelText, OnlyAscii) {
  write("gpu/kernels/a.cuh", "int a;\n// \xc3\xa4\n");
  EXPECT_EQ(error_of("a.cuh"), "[kernel_text] source: expected ASCII, found other characters at gpu/kernels/a.cuh:2.");
}

TEST(EmbeddedKernels, HoldTheirSemanticsOnce) {
  for (const EmbeddedFile& f : embedded_files()) {
    const std::string path = f.path;
    const size_t at = path.find("/kernels/");
    if (at == std::string::npos || path.find('/', at + 9) != std::string::npos) continue;
    const std::string text = kernel_text(path.substr(0, at), path.substr(at + 9));
    EXPECT_EQ(count(text, "#include \""), 0) << path;
    EXPECT_EQ(count(text, "struct ParamsT"), 1) << path;
    EXPECT_EQ(count(text, "#pragma once"), 0) << path;
  }
  EXPECT_FALSE(embedded_files().empty());
  EXPECT_THROW(kernel_text("cuda", "../../core/env.h"), Error);
}
}  // namespace
