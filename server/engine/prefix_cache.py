"""One prefix cache for plain, key and steered prompts.

Owns one change to vLLM (0.32), inside the process that schedules. vLLM puts a digest of the embedding rows
into the hash of every block of a mixed prompt, also where all of its tokens are real, so that mixed prompts
share nothing with token prompts. Without it such blocks hash as in a token prompt, and what stands before a
latent is computed once, whoever asked first. Behind a latent nothing is shared with other latents: a block's
hash holds that of the block before it.

Where workers have processes of their own (tensor parallelism), this changes nothing, and mixed prompts share
with each other only, as vLLM has it.
"""

from typing import Any


def share_prefixes() -> None:
    """Let blocks of real tokens hash alike in mixed and token prompts; again is harmless."""
    from vllm.v1.core import kv_cache_utils

    digest = kv_cache_utils._gen_prompt_embeds_extra_hash_keys
    if digest.__module__ == __name__:
        return

    def digest_of_latents(request: Any, start: int, end: int) -> Any:
        real = request.prompt_is_token_ids
        if real is not None and all(real[start:end]):
            return []
        return digest(request, start, end)

    kv_cache_utils._gen_prompt_embeds_extra_hash_keys = digest_of_latents
