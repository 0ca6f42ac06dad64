"""Random cases, wider than the tables: any combination of features must agree with the formula.

Hypothesis draws the same cases in every run (conftest.py) and shrinks a failure to the smallest one.
"""

from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from cases import CacheCase, Case
from judge import try_backward, try_forward, try_kvcache
from targets import TARGETS

sizes = st.one_of(st.integers(0, 40), st.integers(90, 130))
lengths_used = st.one_of(st.none(), st.tuples(st.integers(0, 200), st.integers(0, 200)))
head_counts = st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1), (4, 2)])
dims = st.one_of(st.integers(1, 40), st.sampled_from([64, 80, 96, 128]))
dtypes = st.sampled_from(["float32", "float32", "bfloat16", "float16", "float64"])
windows = st.tuples(*[st.one_of(st.just(-1), st.integers(0, 20), st.integers(90, 120))] * 2)
softcaps = st.sampled_from([0.0, 0.0, 0.8, 5.0, 40.0])
alibis = st.sampled_from([None, None, "h", "bh"])
chunks = st.one_of(st.just(0), st.integers(1, 120))
offsets = st.one_of(st.none(), st.integers(0, 150))


@st.composite
def attention_cases(draw):
    heads, kv_heads = draw(head_counts)
    dense = draw(st.integers(0, 3)) > 0
    case = Case(
        batch=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        rows=draw(sizes),
        keys=draw(sizes),
        dim=draw(dims),
        value_dim=draw(st.one_of(st.none(), dims)),
        dtype=draw(dtypes),
        scale=draw(st.sampled_from([None, None, 0.2, 1.0, -0.3])),
        causal=draw(st.booleans()),
        window=draw(st.one_of(st.just((-1, -1)), windows)),
        softcap=draw(softcaps),
        alibi=draw(alibis),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.5])),
        sink=draw(st.booleans()),
        chunk=draw(chunks),
        used_rows=draw(lengths_used),
        used_keys=draw(lengths_used),
        layout=draw(st.sampled_from(["contiguous", "heads_first", "sliced", "reversed"])),
        spread=draw(st.sampled_from([1.0, 1.0, 3.0])),
        dlse=draw(st.booleans()),
    )
    if dense:
        axes = st.tuples(*[st.sampled_from(pair) for pair in ("b1", "h1", "q1", "k1")]).map("".join)
        bias = st.one_of(st.none(), axes, axes.map(lambda one: f"bool:{one}"))
        return case | Case(bias=draw(bias), offsets=draw(st.tuples(offsets, offsets)))
    return case | Case(lengths=draw(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=4).map(tuple)), tail=draw(st.integers(0, 2)))


@st.composite
def cache_cases(draw):
    heads, kv_heads = draw(head_counts)
    capacity, rows = draw(st.integers(8, 250)), draw(st.integers(1, 8))
    new = draw(st.integers(0, 8))
    lengths = st.integers(0, capacity - new)
    cached = draw(st.one_of(lengths, st.tuples(lengths, lengths), st.none() if new == 0 else lengths))
    dim = draw(dims)
    case = CacheCase(
        batch=draw(st.integers(1, 2)),
        heads=heads,
        kv_heads=kv_heads,
        rows=rows,
        dim=dim,
        value_dim=draw(st.one_of(st.none(), dims)),
        dtype=draw(dtypes),
        causal=draw(st.booleans()),
        window=draw(st.one_of(st.just((-1, -1)), windows)),
        softcap=draw(softcaps),
        alibi=draw(alibis),
        sink=draw(st.booleans()),
        capacity=capacity,
        cached=cached,
        new=new,
        page=draw(st.sampled_from([0, 0, 1, 3, 16, 100])),
        num_splits=draw(st.sampled_from([0, 0, 1, 2, 5])),
        layout=draw(st.sampled_from(["contiguous", "heads_first", "sliced"])),
    )
    if new and dim > 1 and draw(st.booleans()):
        style = draw(st.sampled_from(["interleaved", "halves"]))
        case = case | CacheCase(rotary=style, rotary_dim=2 * draw(st.integers(1, dim // 2)))
    if not case.page:
        pads = st.one_of(st.none(), st.tuples(st.integers(0, 30), st.integers(0, 30)))
        case = case | CacheCase(batch_index=draw(st.booleans()), leftpad=draw(pads))
    return case


# All targets take one and the same case before the next is drawn: what is expected of it is computed once. Those that compile a kernel
# for each case have fewer, and show the first failure as it is.
COMPILING = [target for target in TARGETS if target.name == "metal_emulated"]
few = settings(max_examples=12, phases=[Phase.generate])
COMPILED = [target for target in TARGETS if target not in COMPILING]


def try_attention(targets, case):
    for target in targets:
        note(f"{target.name}: {case}")
        if target.takes(case):
            try_forward(target, case)
            try_backward(target, case)


def try_cache(targets, case):
    for target in targets:
        note(f"{target.name}: {case}")
        if target.takes(case):
            try_kvcache(target, case)


@settings(max_examples=80)
@given(case=attention_cases())
def test_attention(case):
    try_attention(COMPILED, case)


@settings(max_examples=100)
@given(case=cache_cases())
def test_cache(case):
    try_cache(COMPILED, case)


@few
@given(case=attention_cases())
def test_attention_compiling(case):
    try_attention(COMPILING, case)


@few
@given(case=cache_cases())
def test_cache_compiling(case):
    try_cache(COMPILING, case)
