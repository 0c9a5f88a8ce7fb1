"""Starting towers: checked, and with the threads and GPU memory that their process may use."""

from serve_app.siglip.checkpoints import Checkpoint
from serve_app.siglip.inputs import collate
from serve_app.siglip.precision import Precision
from serve_app.towers.runtime import cap_gpu_memory, limit_threads
from serve_app.towers.self_check import check_image_tower, check_text_tower, probe_images
from serve_app.towers.tower import ImageTower, TextTower


def start_image_tower(
    checkpoint: Checkpoint, precision: Precision, num_threads: int, gpu_share: float
) -> ImageTower:
    """Return a loaded vision tower that has passed its self-check.

    Args:
        checkpoint: The checkpoint to load.
        precision: What the tower runs as.
        num_threads: CPU threads of a forward pass; 0 leaves them to torch.
        gpu_share: Fraction of a GPU; the process's memory on it is capped to that.

    Raises:
        ConfigError: The checkpoint cannot be loaded, or this process cannot run the precision.
    """
    limit_threads(num_threads)
    cap_gpu_memory(gpu_share)
    tower = ImageTower(checkpoint, precision)
    check_image_tower(tower)
    return tower


def warm_up(tower: ImageTower, max_num_patches: int, batch_size: int) -> None:
    """Encode one batch of the largest size, so that it claims its memory now."""
    probes = probe_images(tower.checkpoint, max_num_patches) * batch_size
    tower.encode(collate(probes[:batch_size]))


def start_text_tower(
    checkpoint: Checkpoint, precision: Precision, num_threads: int, gpu_share: float
) -> TextTower:
    """Return a loaded text tower that has passed its self-check; see `start_image_tower`."""
    limit_threads(num_threads)
    cap_gpu_memory(gpu_share)
    return load_text_tower(checkpoint, precision)


def load_text_tower(checkpoint: Checkpoint, precision: Precision) -> TextTower:
    """Return a text tower that has passed its self-check and shares its process with other work.

    Raises:
        ConfigError: The checkpoint cannot be loaded, or this process cannot run the precision.
    """
    tower = TextTower(checkpoint, precision)
    check_text_tower(tower)
    return tower
