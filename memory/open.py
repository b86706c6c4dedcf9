"""Which episode store the settings ask for.

Owns the choice and the folder's place. Knows nothing of how stores work.
"""

from config.settings import Settings
from memory.free_space import FreeSpace
from memory.redaction import Redaction
from memory.store import EpisodeStore


def open_store(settings: Settings, space: str, length: int, hidden_size: int) -> EpisodeStore:
    """Return the store of one space: Qdrant at `memory_url`, else Qdrant Edge under `data_dir`.

    Raises:
        StoreUnavailableError: the server does not answer, or the folder is locked or unreadable.
    """
    redact = Redaction.of(settings.memory_text, settings.memory_redact)
    # Imported here because each costs more than a second and only one is needed.
    if settings.memory_url:
        from memory.qdrant_store import QdrantStore, connect

        client = connect(settings.memory_url, settings.memory_api_key)
        return QdrantStore(client, space=space, length=length, hidden_size=hidden_size, redact=redact)
    from memory.edge_store import EdgeStore

    folder = settings.data_dir / "episodes" / space
    room = FreeSpace(settings.data_dir, settings.min_free_mib)
    return EdgeStore(folder, space=space, length=length, hidden_size=hidden_size, room=room, redact=redact)
