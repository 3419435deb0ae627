"""A page on the loopback address, to browse an index of images and to search it by uploaded images.

A request passes through the files in this order: ``guard`` refuses what is none of the page's, ``application`` knows
the addresses, ``views`` what a page says, ``site`` the network and the uploads, ``collection`` the images of the index,
``pictures`` how they are drawn. ``launch`` opens the port and the browser.
"""

__all__: list[str] = []
