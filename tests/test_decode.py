"""flash_attn_with_kvcache of every target: attention over a cache, and the cache after the append."""

import cases
from judge import try_kvcache
from targets import on_targets


@on_targets(cases.decode)
def test_decode(target, case):
    try_kvcache(target, case)
