// A compiler made of software: an image is the options and a number of the text. Each compilation appends a line to FAKE_NVRTC_LOG and
// takes FAKE_NVRTC_MS milliseconds. It knows architectures 80, 90 and 100. With FAKE_NVRTC_COMPILER, a command, it does compile: the
// command gets a text, a library to make of it (the image is its path) and the options; both lie in the folder FAKE_NVRTC_FOLDER.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>

namespace {
struct Program {
  std::string text, image, log;
};
}  // namespace

extern "C" {
int nvrtcVersion(int* major, int* minor) {
  const char* version = std::getenv("FAKE_NVRTC_VERSION");
  const int number = version ? std::atoi(version) : 13000;
  return *major = number / 1000, *minor = number % 1000 / 10, 0;
}
int nvrtcCreateProgram(Program** program, const char* text, const char*, int, const char* const*, const char* const*) {
  return *program = new Program{text, "", ""}, 0;
}
int nvrtcDestroyProgram(Program** program) {
  delete *program;
  return *program = nullptr, 0;
}
int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  if (const char* ms = std::getenv("FAKE_NVRTC_MS")) std::this_thread::sleep_for(std::chrono::milliseconds(std::atoi(ms)));
  for (int i = 0; i < count; i++) program->image += std::string(options[i]) + ' ';
  program->image += std::to_string(std::hash<std::string>()(program->text));
  if (const char* log = std::getenv("FAKE_NVRTC_LOG")) {
    FILE* file = std::fopen(log, "a");
    std::fprintf(file, "%s\n", program->image.c_str());
    std::fclose(file);
  }
  if (const char* compiler = std::getenv("FAKE_NVRTC_COMPILER")) {
    const std::string stem = std::string(std::getenv("FAKE_NVRTC_FOLDER")) + '/' + std::to_string(std::hash<std::string>()(program->image));
    FILE* file = std::fopen((stem + ".cu").c_str(), "w");
    std::fputs(program->text.c_str(), file);
    std::fclose(file);
    std::string command = std::string(compiler) + " '" + stem + ".cu' '" + stem + ".so'";
    for (int i = 0; i < count; i++) command += std::string(" '") + options[i] + '\'';
    program->image = stem + ".so";
    return std::system(command.c_str()) == 0 ? 0 : 6;
  }
  if (!std::getenv("FAKE_NVRTC_FAIL")) return 0;
  program->log = "some warning\nkernels/a.cuh(3): error: planted\n";
  return 6;
}
int nvrtcGetProgramLogSize(Program* program, size_t* bytes) { return *bytes = program->log.size() + 1, 0; }
int nvrtcGetProgramLog(Program* program, char* text) { return std::memcpy(text, program->log.c_str(), program->log.size() + 1), 0; }
int nvrtcGetCUBINSize(Program* program, size_t* bytes) { return *bytes = program->image.size() + 1, 0; }
int nvrtcGetCUBIN(Program* program, char* image) { return std::memcpy(image, program->image.c_str(), program->image.size() + 1), 0; }
int nvrtcGetPTXSize(Program* program, size_t* bytes) { return nvrtcGetCUBINSize(program, bytes); }
int nvrtcGetPTX(Program* program, char* image) { return nvrtcGetCUBIN(program, image); }
int nvrtcGetNumSupportedArchs(int* count) { return *count = 3, 0; }
int nvrtcGetSupportedArchs(int* archs) { return archs[0] = 80, archs[1] = 90, archs[2] = 100, 0; }
const char* nvrtcGetErrorString(int) { return "FAKE_ERROR"; }
}
