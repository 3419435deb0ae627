"""Caltech-UCSD Birds-200-2011."""

from pathlib import Path

from otdml.data.protocol import Entry, Listing, Protocol, ProtocolImages, find, table

__all__ = ["CUB200", "PROTOCOL"]


def _read(root: Path) -> Listing:
    home = find(root, ["images.txt", "CUB_200_2011/images.txt"]).parent
    names = dict(table(find(home, ["classes.txt"]), 2))
    class_of = dict(table(find(home, ["image_class_labels.txt"]), 2))
    # The split by class; train_test_split.txt is that of closed-set classification.
    entries = [
        Entry(path, names[class_of[image]], "train" if int(class_of[image]) <= 100 else "test")
        for image, path in table(home / "images.txt", 2)
    ]
    return Listing(home / "images", entries)


PROTOCOL = Protocol(
    name="CUB-200-2011",
    address="https://data.caltech.edu/records/65de6-vp158 (CUB_200_2011.tgz, md5 97eceeb196236b17998738112f37df78)",
    layout="CUB_200_2011/ with images.txt, classes.txt, image_class_labels.txt and images/001.Black_footed_Albatross/",
    counts={"train": (5_864, 100), "test": (5_924, 100)},
    read=_read,
)


class CUB200(ProtocolImages):
    """11,788 photographs of 200 bird species: trained on the first 100, tested on the others.

    ``val`` is a fifth of the training species.

    Source: Wah et al. :cite:p:`wah:11`; the split is that of Oh Song et al. :cite:p:`ohsong:16`.
    """

    protocol = PROTOCOL
