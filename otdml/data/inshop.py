"""DeepFashion In-Shop Clothes Retrieval."""

from pathlib import Path

from otdml.data.protocol import Entry, Listing, Protocol, ProtocolImages, find, table

__all__ = ["PROTOCOL", "InShop"]

FILE = "list_eval_partition.txt"


def _read(root: Path) -> Listing:
    partition = find(root, [FILE, f"Eval/{FILE}", f"eval/{FILE}"])
    # The protocol uses photographs of 256 pixels; img_highres contains others under the same names.
    images = find(root, ["img", "Img/img"])
    entries = [Entry(*row) for row in table(partition, 3, header="image_name")]
    return Listing(images.parent, entries)


PROTOCOL = Protocol(
    name="In-Shop Clothes Retrieval",
    address="https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html",
    layout=f"{FILE} (or Eval/{FILE}) and img/ (or Img/img/, unpacked from img.zip), with img/WOMEN/ and img/MEN/",
    counts={"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)},
    read=_read,
)


class InShop(ProtocolImages):
    """52,712 photographs of 7,982 garments: trained on 3,997 of them; queries of the others searched in a gallery.

    ``"test"`` holds queries and gallery, told apart by ``is_query``; ``"query"`` and ``"gallery"`` are splits as well.
    ``val`` is a fifth of the training garments, each image searched among all others.

    Source: Liu et al. :cite:p:`liu:16`.
    """

    protocol = PROTOCOL
