"""Image files in, 8-bit greyscale pictures out; and the augmentation that a radiograph can bear.

Knows no study, no model and no tensor. How deeper pixels become 8 bits:

    16-bit PNG, and DICOM without a window: 0 stays black and the largest number of the fewest bits that hold the
        picture becomes white (8 bits or more, fewer only where the file stores fewer). A 12-bit picture in a 16-bit
        file is thus not almost black, and the exposure is not stretched to the picture's minimum and maximum.
    DICOM with a window or a VOI LUT: the first one that can be used is applied, after the modality LUT or the rescale
        slope and intercept. Without one, a rescale slope below 0 inverts the picture and does nothing else.
    MONOCHROME1 is inverted, so that bone is bright and air is dark. Padding is black and does not count as a value.
"""

from hf_medvlm.data.images.augment import augment
from hf_medvlm.data.images.base import MAX_PIXELS
from hf_medvlm.data.images.dicom import DICOM_SUFFIXES
from hf_medvlm.data.images.pictures import to_greyscale
from hf_medvlm.data.images.read import ONE_GREY, one_grey, open_radiograph

__all__ = [
    "DICOM_SUFFIXES",
    "MAX_PIXELS",
    "ONE_GREY",
    "augment",
    "one_grey",
    "open_radiograph",
    "to_greyscale",
]
