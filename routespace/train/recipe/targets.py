"""What there is to learn of an image, as sources give it. Nothing here imports torch.

    label      int: the class of the image
    objects    dict: boxes and classes of its objects
    masks      the same, with a mask for each
    pixels     int64 (H, W): the class of each pixel, IGNORE where nobody knows; while training those of the image
               as it is fed, of held-out pictures those of the picture itself, in whose size they are judged

The dict of an image's N objects, all tensors:

    boxes      float32 (N, 4)      x1 y1 x2 y2 in pixels of the image as it is fed, x2 and y2 exclusive
    labels     int64 (N,)          classes, from 0
    crowd      bool (N,)           a crowd: found or not, it counts for nothing
    area       float32 (N,)        pixels of the original picture
    masks      bool (N, H, W)      where masks are asked for
    own_masks  uint8 (N, P)        those of the original picture, eight pixels a number, where it was held out and
                                   fed smaller: it is judged by them
    image_id   int64 ()            its number in the set
    size       int64 (2,)          height and width of the original picture, in which results are told
    fed        int64 (2,)          height and width of the image as it is fed
"""

from __future__ import annotations

from typing import Literal

Target = Literal["label", "objects", "masks", "pixels"]
KNOW_OBJECTS: tuple[Target, ...] = ("objects", "masks")  # that tell where objects are
RENDERED: tuple[Target, ...] = ("label", "objects", "masks", "pixels")  # what is known of a scene made here
IGNORE = 255  # of a pixel without a class
BACKGROUND = "background"  # the first class of pixels, where what is no object has a name
