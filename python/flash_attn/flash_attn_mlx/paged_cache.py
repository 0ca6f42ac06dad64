"""Writing into paged caches without attending to them."""

from __future__ import annotations

from typing import Any

from flash_attn import engine, frameworks
from flash_attn.call import Options, Pass, Role

_FUNCTION = "update_paged_kv_cache"


def update_paged_kv_cache(k_cache: Any, v_cache: Any, k: Any, v: Any, page_table: Any, cache_seqlens: Any) -> Any:
    """Writes k, v (b, new, hk, d) into the pages (pages, page_size, hk, d) at cache_seqlens, in place, and returns the new lengths.

    page_table int32 (b, max_pages), unused entries anything; cache_seqlens int32 (b,): the lengths before. The caches are the caller's
    own objects, as with flash_attn_with_kvcache, which does the same and attends. Raises TypeError, ValueError; caches are then untouched.
    """
    framework = frameworks.of(k_cache, _FUNCTION, "k_cache")
    arrays = {Role.K: k_cache, Role.V: v_cache, Role.NEW_K: k, Role.NEW_V: v, Role.PAGES: page_table, Role.LENGTHS: cache_seqlens}
    engine.check(framework, _FUNCTION, arrays, Options(), Pass.APPEND)
    framework.append(_FUNCTION, arrays, Options())
    return cache_seqlens + k.shape[1]
