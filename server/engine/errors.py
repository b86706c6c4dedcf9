"""vLLM's errors as ours.

Owns the translation, in one place. Knows nothing of what was being done.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from model.engine import EngineDeadError, EngineError, PromptRejectedError


@contextmanager
def translated() -> Iterator[None]:
    """Inside, what vLLM raises becomes EngineDeadError, PromptRejectedError or EngineError."""
    from vllm.exceptions import VLLMClientError, VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError as VLLMDeadError
    from vllm.v1.engine.exceptions import EngineGenerateError

    try:
        yield
    except VLLMDeadError as error:
        raise EngineDeadError("vLLM's engine is gone") from error
    except VLLMClientError as error:
        raise PromptRejectedError(str(error)) from error
    except (VLLMError, EngineGenerateError) as error:
        raise EngineError(str(error) or type(error).__name__) from error
