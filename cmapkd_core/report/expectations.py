"""What the paper expects of its methods on COCO's 5K test: targets of its outline, measured by nobody.

They stand in a section of their own, under a heading that says so, and only where someone asks for it.
"""

from __future__ import annotations

# Suite -> title of the numbers' columns, and row -> numbers in percent. From the outline's Tables 2 and 4.
EXPECTED: dict[str, tuple[tuple[str, ...], dict[str, tuple[float, ...]]]] = {
    "table2": (
        ("COCO image to text R@1", "COCO text to image R@1", "COCO mean recall"),
        {
            "scratch": (52.1, 37.8, 65.3),
            "kd": (53.2, 38.9, 66.3),
            "fitnet": (53.8, 39.4, 66.8),
            "promptkd": (54.3, 40.1, 67.4),
            "c2kd": (55.7, 41.5, 68.7),
            "llava_kd": (56.2, 42.0, 69.2),
            "none": (57.2, 42.9, 70.1),
        },
    ),
    "table4": (
        ("COCO R@1",),
        {
            "no_pyramid": (54.1,),
            "no_hierarchy": (54.7,),
            "no_alsn": (55.3,),
            "manual_alsn": (55.8,),
            "no_align": (55.1,),
            "no_relation": (56.5,),
            "one_stage": (56.0,),
            "none": (57.2,),
        },
    ),
}
