"""`TagImages`: the whole pipeline as a class for `Dataset.map_batches` of Ray Data.

Ray Data then decides about the order of rows and about what happens when a process dies;
`siglip-serve batch` does more.
"""

from pathlib import Path

import pyarrow as pa

from serve_app.batch.rows import ERROR, TAG
from serve_app.config.service import ServiceConfig, load_config
from serve_app.demo.settings import demo_config
from serve_app.errors import ConfigError
from serve_app.pipeline.local_tagger import LocalTagger
from serve_app.pipeline.tagged_image import TaggedImage
from serve_app.tagging.options import tag_options


class TagImages:
    """Adds the columns `tags` and `error` to batches of encoded images.

    Use it as `dataset.map_batches(TagImages, fn_constructor_args=["config.yaml"],
    batch_format="pyarrow", batch_size=64, compute=ray.data.ActorPoolStrategy(size=1),
    num_gpus=0.5)`.
    """

    def __init__(
        self,
        config: str | ServiceConfig | None = None,
        column: str = "bytes",
        vocabulary: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            config: A configuration, or its path. Default: that of the embedded demo.
            column: Column with the bytes of the images; `read_binary_files` calls it `bytes`.
            vocabulary: Vocabulary of the configuration. Default: its default one.

        Raises:
            ConfigError: The configuration or the checkpoint cannot work.
        """
        self._tagger = LocalTagger(
            load_config(Path(config)) if isinstance(config, str) else config or demo_config()
        )
        self._column = column
        self._options = tag_options(vocabulary=vocabulary)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a batch with two more columns.

        `tags` is a list of labels and confidences, `error` a code and a message, or null.

        Raises:
            ConfigError: The batch has no such column.
        """
        if self._column not in batch.column_names:
            raise ConfigError(
                f"the batch has no column {self._column}; it has {', '.join(batch.column_names)}."
            )
        images = self._tagger.tag_images(
            [data or b"" for data in batch[self._column].to_pylist()], self._options
        )
        tags = pa.array([_tags_of(image) for image in images], pa.list_(TAG))
        errors = pa.array([_error_of(image) for image in images], ERROR)
        return batch.append_column("tags", tags).append_column("error", errors)


def _tags_of(image: TaggedImage) -> list[dict[str, object]] | None:
    if image.error is not None:
        return None
    return [{"label": tag.label, "confidence": tag.confidence} for tag in image.tags]


def _error_of(image: TaggedImage) -> dict[str, str] | None:
    if image.error is None:
        return None
    return {"code": image.error.code, "message": image.error.message}
