"""Stanford Online Products."""

from pathlib import Path

from otdml.data.protocol import Entry, Listing, Protocol, ProtocolImages, find, table

__all__ = ["PROTOCOL", "StanfordOnlineProducts"]


def _read(root: Path) -> Listing:
    home = find(root, ["Ebay_train.txt", "Stanford_Online_Products/Ebay_train.txt"]).parent
    entries = []
    for part in ("train", "test"):
        for _, name, _, path in table(find(home, [f"Ebay_{part}.txt"]), 4, header="image_id"):
            entries.append(Entry(path, f"{path.partition('_final/')[0]} {name}", part))
    return Listing(home, entries)


PROTOCOL = Protocol(
    name="Stanford Online Products",
    address="https://cvgl.stanford.edu/projects/lifted_struct (Stanford_Online_Products.zip)",
    layout="Stanford_Online_Products/ with Ebay_train.txt, Ebay_test.txt and bicycle_final/ ... toaster_final/",
    counts={"train": (59_551, 11_318), "test": (60_502, 11_316)},
    read=_read,
)


class StanfordOnlineProducts(ProtocolImages):
    """120,053 photographs of 22,634 products: trained on 11,318 of them, tested on the others.

    A class has five images on average, some have two. ``val`` is a fifth of the training products.

    Source: Oh Song et al. :cite:p:`ohsong:16`.
    """

    protocol = PROTOCOL
