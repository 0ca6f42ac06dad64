"""The faults that mutants.py plants: (file, the line with the faulty part between guillemets, what stands there instead).

The part between the guillemets is an expression; it and what replaces it have the same type. A line that occurs more than
once is given with enough of its neighbours to be found once.
"""

from __future__ import annotations

SEMANTICS = [
    # ---- mask.h
    ("mask.h", "select(aligned != 0, «keys - rows», m.shift)", "0"),
    ("mask.h", "select(aligned != 0, keys - rows, «m.shift»)", "0"),
    ("mask.h", "select(x < I(0), «I(0) - (I(chunk - 1) - x) / I(chunk)», x / I(chunk))", "x / I(chunk)"),
    ("mask.h", "max(I(0), «diagonal - I(m.left)»)", "diagonal - I(m.left) + I(1)"),
    ("mask.h", "max(I(0), «diagonal - I(m.left)»)", "diagonal - I(m.left) - I(1)"),
    ("mask.h", "max(«I(0)», diagonal - I(m.left))", "I(1)"),
    ("mask.h", "min(I(m.keys), «diagonal + I(m.right + 1)»)", "diagonal + I(m.right)"),
    ("mask.h", "min(I(m.keys), «diagonal + I(m.right + 1)»)", "diagonal + I(m.right + 2)"),
    ("mask.h", "min(«I(m.keys)», diagonal + I(m.right + 1))", "I(m.keys - 1)"),
    ("mask.h", "diagonal + I(m.right + 1));\n  const I first = select(I(m.chunk) > I(0), «max(low, chunk)», low)", "low"),
    (
        "mask.h",
        "diagonal + I(m.right + 1));\n  const I first = select(I(m.chunk) > I(0), max(low, chunk), low);\n"
        "  const I end = select(I(m.chunk) > I(0), «min(high, chunk + I(m.chunk))», high)",
        "high",
    ),
    ("mask.h", "max(I(0), «diagonal - I(m.right)»)", "diagonal - I(m.right) + I(1)"),
    ("mask.h", "max(I(0), «diagonal - I(m.right)»)", "diagonal - I(m.right) - I(1)"),
    ("mask.h", "min(I(m.rows), «diagonal + I(m.left + 1)»)", "diagonal + I(m.left)"),
    ("mask.h", "min(«I(m.rows)», diagonal + I(m.left + 1))", "I(m.rows - 1)"),
    ("mask.h", "«chunk_start(key, max(m.chunk, 1)) - I(m.shift)»", "chunk_start(key, max(m.chunk, 1))"),
    ("mask.h", "diagonal + I(m.left + 1));\n  const I first = select(I(m.chunk) > I(0), «max(low, chunk)», low)", "low"),
    (
        "mask.h",
        "diagonal + I(m.left + 1));\n  const I first = select(I(m.chunk) > I(0), max(low, chunk), low);\n"
        "  const I end = select(I(m.chunk) > I(0), «min(high, chunk + I(m.chunk))», high)",
        "high",
    ),
    ("mask.h", "Interval<int>{«visible_keys(m, row0).first», visible_keys(m, row1).end}", "visible_keys(m, row1).first"),
    ("mask.h", "Interval<int>{visible_keys(m, row0).first, «visible_keys(m, row1).end»}", "visible_keys(m, row0).end"),
    ("mask.h", "Interval<int>{«visible_keys(m, row1).first», visible_keys(m, row0).end}", "visible_keys(m, row0).first"),
    ("mask.h", "Interval<int>{visible_keys(m, row1).first, «visible_keys(m, row0).end»}", "visible_keys(m, row1).end"),
    # ---- score.h
    ("score.h", "return «-1e33f»;", "-3.0f"),
    ("score.h", "return «select(y < V(0.04), small, large)»;", "small"),
    ("score.h", "exp2(c * «V(2.8853900817779268)»)", "V(2.0)"),
    ("score.h", "fma(y, low, «V(-0.33333333333333333)»)", "V(-0.3)"),
    ("score.h", "return «V(cap) * bounded_tanh(s / V(cap))»;", "bounded_tanh(s / V(cap))"),
    ("score.h", "return V(cap) * «bounded_tanh(s / V(cap))»;", "bounded_tanh(s)"),
    ("score.h", "return «V(1.0) - t * t»;", "V(1.0)"),
    ("score.h", "select(bias < V(-1e20), «V(hidden())», s + bias)", "s"),
    ("score.h", "select(bias < V(-1e20), V(hidden()), «s + bias»)", "s - bias"),
    ("score.h", "x = «dot * V(s.scale)»;", "dot"),
    ("score.h", "x = «x - slope * distance»;", "x + slope * distance"),
    ("score.h", "return «Real(1.4426950408889634)»;", "Real(1.0)"),
    ("score.h", "return «s.scale * Real(1.4426950408889634)»;", "s.scale"),
    ("score.h", "softcap_slope(«dot * V(s.scale)», s.softcap)", "dot"),
    # ---- softmax.h
    ("softmax.h", "exp2(«old_max - new_max»)", "new_max - old_max"),
    ("softmax.h", "exp2(fma(score, unit, «V(0.0) - maximum»))", "V(0.0)"),
    ("softmax.h", "Softmax<V>{m, «s.sum * rescale(s.max, m)»}", "s.sum"),
    ("softmax.h", "const V x = «sink * V(1.4426950408889634)»;", "sink"),
    ("softmax.h", "Softmax<V>{t.max, «t.sum + exp2(x - t.max)»}", "t.sum"),
    ("softmax.h", "return «select(s.sum > V(0.0), V(1.0) / s.sum, V(0.0))»;", "V(1.0) / s.sum"),
    ("softmax.h", "V(0.69314718055994531), «V(minus_infinity())»)", "V(no_maximum())"),
    ("softmax.h", "(s.max + log2(s.sum)) * «V(0.69314718055994531)»", "V(1.0)"),
    ("softmax.h", "«s.max + log2(s.sum)»", "log2(s.sum)"),
    ("softmax.h", "«lse * V(1.4426950408889634)», V(1e30)", "lse"),
    ("softmax.h", "fma(kept, product, «V(0.0) - delta»)", "V(0.0)"),
    ("softmax.h", "return «probability * fma(kept, product, V(0.0) - delta)»;", "probability * fma(V(1.0), product, V(0.0) - delta)"),
    ("softmax.h", "return «V(0.0) - weight * delta»;", "weight * delta"),
    # ---- dropout.h
    ("dropout.h", "Words<U>{«hi1 ^ c.y ^ U(k0)», lo1", "hi1 ^ c.y"),
    ("dropout.h", "lo1, «hi0 ^ c.w ^ U(k1)», lo0", "hi0 ^ U(k1)"),
    ("dropout.h", "philox_round(c2, k0 + «2u * a»", "a"),
    ("dropout.h", "return «philox_round(c6, k0 + 6u * a, k1 + 6u * b)»;", "c6"),
    ("dropout.h", "const U rows = «(row >> 4) * U(8u) + (row & U(7u))»;", "(row >> 4) * U(8u) + (row & U(15u))"),
    ("dropout.h", "const U keys = «(key >> 5) * U(8u) + (key & U(7u))»;", "(key >> 4) * U(8u) + (key & U(7u))"),
    ("dropout.h", "Words<U>{rows, keys, head, «U(s.offset)»}", "U(0u)"),
    ("dropout.h", "Words<U>{rows, keys, «head», U(s.offset)}", "U(0u)"),
    ("dropout.h", "((row >> 3) & U(1u)) * «U(4u)»", "U(2u)"),
    ("dropout.h", "select(pair == U(2u), «w.z», w.w)", "w.w"),
    ("dropout.h", "«(group & U(1u)) * U(16u)»", "(U(1u) - (group & U(1u))) * U(16u)"),
    ("dropout.h", "< «U(d.threshold)»", "U(d.threshold + 64u)"),
    # ---- rotary.h
    ("rotary.h", "Pair<V>{«x * cos - y * sin», x", "x * cos + y * sin"),
    ("rotary.h", "y * sin, «x * sin + y * cos»}", "y * cos - x * sin"),
    ("rotary.h", "select(interleaved != 0, «2 * t», t)", "t"),
    ("rotary.h", "select(interleaved != 0, «2 * t + 1», t + rotary_dim / 2)", "2 * t"),
    ("rotary.h", "select(interleaved != 0, 2 * t + 1, «t + rotary_dim / 2»)", "t + 1"),
    # ---- layout.h
    ("layout.h", "return «batch * s.batch + row * s.row + head * s.head»;", "batch * s.batch + row * s.row"),
    ("layout.h", "return «key / page_size»;", "(key + 1) / page_size"),
    ("layout.h", "return «key % page_size»;", "0"),
    ("layout.h", "return «head / group»;", "0"),
    ("layout.h", "max(«length + appended - leftpad», 0)", "length + appended"),
    ("layout.h", "max(«length + appended - leftpad», 0)", "length - leftpad"),
]
