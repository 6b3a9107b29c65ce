import numpy as np
import pytest
from PIL import Image

from tljax.core.errors import UserError
from tljax.data.pets import open_pets

XML = (
    "<annotation><size><width>600</width><height>400</height></size><object><bndbox><xmin>333</xmin><ymin>72</ymin>"
    "<xmax>425</xmax><ymax>158</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def pets(tmp_path):
    """Two breeds of cats and one of dogs, in the official layout."""
    root = tmp_path / "pets"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "xmls").mkdir(parents=True)
    for name in ("Abyssinian_1", "Abyssinian_2", "Bengal_1", "Bengal_2", "american_bulldog_1", "american_bulldog_2"):
        Image.new("RGB", (6, 4)).save(root / "images" / f"{name}.jpg")
    (root / "annotations" / "trainval.txt").write_text(
        "#Image CLASS-ID SPECIES BREED ID\nBengal_1 6 1 2\nAbyssinian_1 1 1 1\namerican_bulldog_1 2 2 1\n"
    )
    (root / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\r\nBengal_2 6 1 2\n\namerican_bulldog_2 2 2 1")
    (root / "annotations" / "xmls" / "Bengal_1.xml").write_text(XML)
    return root


def test_breeds_keep_the_official_order_and_splits(pets):
    source = open_pets(pets)
    assert source.classes == ("Abyssinian", "american_bulldog", "Bengal")
    assert source.names == tuple(sorted(source.names))
    assert source.names[0] == "images/Abyssinian_1.jpg"
    assert source.labels.tolist() == [0, 0, 2, 2, 1, 1]
    assert source.splits["train"].tolist() == [0, 2, 4]
    assert source.splits["test"].tolist() == [1, 3, 5]
    assert source.spec == f"pets:{pets}"
    assert source.skipped == ()


def test_species(pets):
    source = open_pets(pets, label="species")
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_head_boxes_are_fractions_and_nan_where_unknown(pets):
    boxes = open_pets(pets).boxes
    assert boxes is not None
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes[2], [72 / 400, 333 / 600, 158 / 400, 425 / 600], rtol=1e-6)
    assert np.isnan(boxes[[0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "not xml",
        XML.replace("600", "0"),
        XML.replace("425", "300"),
        XML.replace("425", "99999"),
        XML.replace("333", "nan"),
        '<!DOCTYPE a [<!ENTITY b "600"><!ENTITY c SYSTEM "file:///etc/passwd">]>' + XML.replace("600", "&b;"),
    ],
)
def test_a_useless_annotation_is_an_unknown_box(pets, xml):
    (pets / "annotations" / "xmls" / "Bengal_1.xml").write_text(xml)
    assert open_pets(pets).boxes is None


def test_listed_but_absent_and_present_but_unlisted_images_are_named(pets):
    (pets / "images" / "Bengal_1.jpg").unlink()
    (pets / "images" / "pug_7.jpg").write_bytes(b"?")
    (pets / "images" / "pug_7.mat").write_bytes(b"?")
    source = open_pets(pets)
    assert len(source) == 5
    assert source.skipped == (
        ("images/Bengal_1.jpg", "listed, but there is no such file"),
        ("images/pug_7.jpg", "in neither trainval.txt nor test.txt"),
    )


def test_what_is_not_the_official_folder_is_said(pets, tmp_path):
    with pytest.raises(UserError, match=r"label 'color' is unknown .* 'breed' or 'species'"):
        open_pets(pets, label="color")
    with pytest.raises(UserError, match="no such folder"):
        open_pets(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no images in it; unpack images.tar.gz"):
        open_pets(tmp_path)
    (pets / "annotations" / "test.txt").rename(pets / "annotations" / "moved.txt")
    with pytest.raises(UserError, match=r"no annotations/test.txt in it"):
        open_pets(pets)


@pytest.mark.parametrize("line", ["Bengal_9", "Bengal_9 6 3 1", "../../etc/passwd_1 6 1 1", "a,b", "Bengal_9 x 1 1"])
def test_a_line_that_cannot_be_read_is_shown(pets, line):
    with open(pets / "annotations" / "test.txt", "a") as file:
        file.write("\n" + line)
    with pytest.raises(UserError, match=r"test.txt, line 5: .* is not \"NAME class-id species breed-id\""):
        open_pets(pets)


def test_an_image_in_both_lists_is_an_error(pets):
    with open(pets / "annotations" / "test.txt", "a") as file:
        file.write("\nBengal_1 6 1 2")
    with pytest.raises(UserError, match="Bengal_1 is listed twice"):
        open_pets(pets)


@pytest.mark.real_data
def test_three_breeds(shared):
    source = open_pets(shared / "data" / "oxford_pets_3breeds")
    assert source.classes == ("Abyssinian", "american_bulldog", "Bengal")
    assert {name: len(members) for name, members in source.splits.items()} == {"train": 300, "test": 298}
    assert np.bincount(source.labels).tolist() == [198, 200, 200]
    assert source.boxes is not None
    known = np.isfinite(source.boxes).all(axis=1)
    assert known.sum() == 296
    assert not known[source.splits["test"]].any()
    assert [name for name, _ in source.skipped] == ["images/Abyssinian_34.jpg", "images/Abyssinian_82.jpg"]
    species = open_pets(shared / "data" / "oxford_pets_3breeds", label="species")
    assert np.bincount(species.labels).tolist() == [398, 200]
