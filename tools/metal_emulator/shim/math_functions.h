// Included three times, in namespaces metal, metal::fast and metal::precise: no include guard. Everything is computed in float and rounded.
#define FA_FUNCTION(NAME, EXPRESSION)                   \
  METAL_FUNC float NAME(float x) { return EXPRESSION; } \
  METAL_FUNC half NAME(half value) {                    \
    const float x = static_cast<float>(value);          \
    return static_cast<half>(EXPRESSION);               \
  }                                                     \
  template <class T, int N>                             \
  METAL_FUNC vec<T, N> NAME(vec<T, N> v) {              \
    for (int i = 0; i < N; i++) {                       \
      const float x = static_cast<float>(v[i]);         \
      v[i] = static_cast<T>(EXPRESSION);                \
    }                                                   \
    return v;                                           \
  }
#define FA_FUNCTION_2(NAME, EXPRESSION)                               \
  METAL_FUNC float NAME(float x, float y) { return EXPRESSION; }      \
  METAL_FUNC half NAME(half a, half b) {                              \
    const float x = static_cast<float>(a), y = static_cast<float>(b); \
    return static_cast<half>(EXPRESSION);                             \
  }
FA_FUNCTION(exp, __builtin_expf(x))
FA_FUNCTION(exp2, __builtin_exp2f(x))
FA_FUNCTION(exp10, __builtin_powf(10.0f, x))
FA_FUNCTION(log, __builtin_logf(x))
FA_FUNCTION(log2, __builtin_log2f(x))
FA_FUNCTION(log10, __builtin_log10f(x))
FA_FUNCTION(sqrt, __builtin_sqrtf(x))
FA_FUNCTION(rsqrt, 1.0f / __builtin_sqrtf(x))
FA_FUNCTION(sin, __builtin_sinf(x))
FA_FUNCTION(cos, __builtin_cosf(x))
FA_FUNCTION(tan, __builtin_tanf(x))
FA_FUNCTION(sinh, __builtin_sinhf(x))
FA_FUNCTION(cosh, __builtin_coshf(x))
FA_FUNCTION(tanh, __builtin_tanhf(x))
FA_FUNCTION(asin, __builtin_asinf(x))
FA_FUNCTION(acos, __builtin_acosf(x))
FA_FUNCTION(atan, __builtin_atanf(x))
FA_FUNCTION(asinh, __builtin_asinhf(x))
FA_FUNCTION(acosh, __builtin_acoshf(x))
FA_FUNCTION(atanh, __builtin_atanhf(x))
FA_FUNCTION(sinpi, __builtin_sinf(x* M_PI_F))
FA_FUNCTION(cospi, __builtin_cosf(x* M_PI_F))
FA_FUNCTION(tanpi, __builtin_tanf(x* M_PI_F))
FA_FUNCTION(floor, __builtin_floorf(x))
FA_FUNCTION(ceil, __builtin_ceilf(x))
FA_FUNCTION(rint, __builtin_rintf(x))
FA_FUNCTION(round, __builtin_roundf(x))
FA_FUNCTION(trunc, __builtin_truncf(x))
FA_FUNCTION(fract, x - __builtin_floorf(x))
FA_FUNCTION(fabs, __builtin_fabsf(x))
FA_FUNCTION_2(pow, __builtin_powf(x, y))
FA_FUNCTION_2(powr, __builtin_powf(x, y))
FA_FUNCTION_2(fmod, __builtin_fmodf(x, y))
FA_FUNCTION_2(atan2, __builtin_atan2f(x, y))
FA_FUNCTION_2(divide, x / y)
FA_FUNCTION_2(nextafter, __builtin_nextafterf(x, y))
METAL_FUNC float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
METAL_FUNC half fma(half x, half y, half z) {
  return static_cast<half>(__builtin_fmaf(static_cast<float>(x), static_cast<float>(y), static_cast<float>(z)));
}
template <class T, int N>
METAL_FUNC vec<T, N> fma(vec<T, N> x, vec<T, N> y, vec<T, N> z) {
  for (int i = 0; i < N; i++) x[i] = fma(T(x[i]), T(y[i]), T(z[i]));
  return x;
}
METAL_FUNC float ldexp(float x, int exponent) { return __builtin_ldexpf(x, exponent); }
#undef FA_FUNCTION
#undef FA_FUNCTION_2
