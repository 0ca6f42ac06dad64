// Scalars, vectors with their constructors, type traits, limits, bit casts.
#pragma once

typedef _Float16 half;
typedef __bf16 bfloat;
typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
constexpr half operator""h(long double x) { return static_cast<half>(x); }
constexpr half operator""h(unsigned long long x) { return static_cast<half>(x); }

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}  // namespace metal

#define FA_VECTORS(NAME, T)           \
  typedef ::metal::vec<T, 2> NAME##2; \
  typedef ::metal::vec<T, 3> NAME##3; \
  typedef ::metal::vec<T, 4> NAME##4;
FA_VECTORS(char, signed char)
FA_VECTORS(uchar, uchar)
FA_VECTORS(short, short)
FA_VECTORS(ushort, ushort)
FA_VECTORS(int, int)
FA_VECTORS(uint, uint)
FA_VECTORS(long, long)
FA_VECTORS(ulong, ulong)
FA_VECTORS(half, half)
FA_VECTORS(float, float)
FA_VECTORS(bfloat, bfloat)
FA_VECTORS(bool, bool)

namespace metal {

using std::bool_constant;
using std::conditional;
using std::conditional_t;
using std::declval;
using std::enable_if;
using std::enable_if_t;
using std::false_type;
using std::integral_constant;
using std::is_arithmetic;
using std::is_arithmetic_v;
using std::is_convertible;
using std::is_convertible_v;
using std::is_floating_point;
using std::is_floating_point_v;
using std::is_integral;
using std::is_integral_v;
using std::is_same;
using std::is_same_v;
using std::is_signed;
using std::is_signed_v;
using std::is_unsigned;
using std::is_unsigned_v;
using std::make_signed_t;
using std::make_unsigned_t;
using std::remove_const_t;
using std::remove_cv;
using std::remove_cv_t;
using std::remove_reference_t;
using std::true_type;

template <class T>
struct remove_addrspace {
  using type = T;
};
template <class T>
struct remove_addrspace<FA_DEVICE T> {
  using type = T;
};
template <class T>
struct remove_addrspace<FA_CONSTANT T> {
  using type = T;
};
template <class T>
struct remove_addrspace<const FA_CONSTANT T> {
  using type = const T;
};
template <class T>
struct remove_addrspace<FA_THREADGROUP T> {
  using type = T;
};
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;

template <class T>
struct numeric_limits : std::numeric_limits<T> {};
template <>
struct numeric_limits<half> {
  static constexpr half max() { return static_cast<half>(65504.0f); }
  static constexpr half min() { return static_cast<half>(6.103515625e-05f); }
  static constexpr half lowest() { return static_cast<half>(-65504.0f); }
  static constexpr half infinity() { return static_cast<half>(__builtin_inff()); }
  static constexpr half quiet_NaN() { return static_cast<half>(__builtin_nanf("")); }
  static constexpr half epsilon() { return static_cast<half>(0.0009765625f); }
};
template <>
struct numeric_limits<bfloat> {
  static constexpr bfloat max() { return static_cast<bfloat>(0x1.fep127f); }
  static constexpr bfloat min() { return static_cast<bfloat>(0x1p-126f); }
  static constexpr bfloat lowest() { return static_cast<bfloat>(-0x1.fep127f); }
  static constexpr bfloat infinity() { return static_cast<bfloat>(__builtin_inff()); }
  static constexpr bfloat quiet_NaN() { return static_cast<bfloat>(__builtin_nanf("")); }
  static constexpr bfloat epsilon() { return static_cast<bfloat>(0.0078125f); }
};

namespace emulated {

template <class V>
struct Shape {  // of a vector or a scalar
  using Element = V;
  static constexpr int size = 1;
};
template <class T, int N>
struct Shape<T __attribute__((ext_vector_type(N)))> {
  using Element = T;
  static constexpr int size = N;
};
template <class V>
constexpr int size_of = Shape<V>::size;
template <class V>
using element_of = typename Shape<V>::Element;

template <class V, class A>
METAL_FUNC constexpr void append(V& v, int& at, A value) {
  if constexpr (size_of<A> == 1) {
    v[at++] = static_cast<element_of<V>>(value);
  } else {
    for (int i = 0; i < size_of<A>; i++) v[at++] = static_cast<element_of<V>>(value[i]);
  }
}

// float4(a, b.xy, c) of kernel text: clang's vectors have no constructors, so the rewriter puts this in their place. The type may turn
// out to be no vector where a template names it.
template <class V, class... A>
METAL_FUNC constexpr V make(A... values) {
  if constexpr (size_of<V> == 1) {
    return V(values...);
  } else if constexpr (sizeof...(A) == 0) {
    return V(0);
  } else {
    V v = V(0);
    int at = 0;
    (append(v, at, values), ...);
    constexpr int given = (size_of<A> + ...);
    static_assert(given == size_of<V> || (given == 1 && sizeof...(A) == 1), "wrong number of vector components");
    if constexpr (given == 1) {
      for (int i = 1; i < size_of<V>; i++) v[i] = v[0];
    }
    return v;
  }
}

}  // namespace emulated
}  // namespace metal

template <class T, class U>
METAL_FUNC constexpr T as_type(U value) {
  static_assert(sizeof(T) == sizeof(U), "as_type needs equal sizes");
  return __builtin_bit_cast(T, value);
}
namespace metal {
using ::as_type;

// Metal 3.1: a value that is the same in all lanes.
template <class T>
struct uniform {
  T value;
  METAL_FUNC operator T() const { return value; }
};
template <class T>
METAL_FUNC uniform<T> make_uniform(T value) {
  return {value};
}
template <class T>
METAL_FUNC uniform<T> operator*(uniform<T> a, uniform<T> b) {
  return {a.value * b.value};
}
struct execution_thread {};
struct execution_simdgroup {};
template <int N>
struct execution_simdgroups {};
}  // namespace metal
