"""Writes small corpora in the layouts in which the published ones are handed out."""

import io
import lzma
import pathlib
import tarfile
import zipfile

TOP = "1-billion-word-language-modeling-benchmark-r13output"
TRAIN = f"{TOP}/training-monolingual.tokenized.shuffled"
TEST = f"{TOP}/heldout-monolingual.tokenized.shuffled"
SENTENCES = [
    "The minister said on Tuesday that talks would resume soon .",
    "Is this the end ? Nobody knows ! Not even us .",
    "He paid $ 1,200 for a used bike , a helmet and a lock .",
    "It 's a long way to the market ( and back ) .",
    '" We are not done yet , " she said , smiling .',
    "Prices rose : milk , bread ; even water .",
]


def tar_bytes(files: dict[str, bytes], mode: str) -> bytes:
    """A tar archive of these files, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def lines(texts) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def lm1b_files(train=SENTENCES, test=SENTENCES[::-1]) -> dict[str, bytes]:
    """Two training files, out of order as in the archive, and two held-out files."""
    half = len(train) // 2
    return {
        f"{TOP}/README": b"about the corpus",
        f"{TRAIN}/news.en-00002-of-00100": lines(train[half:]),
        f"{TRAIN}/news.en-00001-of-00100": lines(train[:half]),
        f"{TEST}/news.en.heldout-00000-of-00050": lines(test[:2]),
        f"{TEST}/news.en.heldout-00001-of-00050": lines(test[2:]),
    }


def lm1b_archive(folder: pathlib.Path, **texts) -> pathlib.Path:
    path = folder / f"{TOP}.tar.gz"
    path.write_bytes(tar_bytes(lm1b_files(**texts), "w:gz"))
    return path


def lm1b_folder(folder: pathlib.Path, **texts) -> pathlib.Path:
    for name, content in lm1b_files(**texts).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder / TOP


def page(number: int) -> str:
    return f"Page {number}\n\nSome words about {'tea and ' * (number % 5)}cake."


def owt_xz(numbers) -> bytes:
    """One of the original .xz archives: a text file per page, with runs of blank lines."""
    texts = {f"{n:07d}-ab.txt": f"\n{page(n)}\n".replace("\n\n", "\n\n\n\n") for n in numbers}
    return lzma.compress(tar_bytes({k: v.encode() for k, v in texts.items()}, "w"))


def owt_subsets(folder: pathlib.Path, pages: int = 12) -> pathlib.Path:
    """The hub's urlsf_subset00.tar, urlsf_subset01.tar: tars of .xz tars of .txt."""
    (folder / "subsets").mkdir(parents=True)
    half = pages // 2
    for subset, numbers in enumerate((range(half), range(half, pages))):
        inner = {
            f"openwebtext/urlsf_subset{subset:02d}-{i}_data.xz": owt_xz(numbers[i::2])
            for i in range(2)
        }
        (folder / f"subsets/urlsf_subset{subset:02d}.tar").write_bytes(tar_bytes(inner, "w"))
    return folder


def owt_order(pages: int = 12) -> list[str]:
    """The pages in the order of those archives."""
    half = pages // 2
    groups = (range(half)[0::2], range(half)[1::2], range(half, pages)[0::2])
    return [page(n) for group in (*groups, range(half, pages)[1::2]) for n in group]


def text8(size: int = 1000) -> str:
    words = " anarchism originated as a term of abuse first used against early working class"
    return (words * (size // len(words) + 1))[:size]


def text8_zip(folder: pathlib.Path, text: str = "") -> pathlib.Path:
    path = folder / "text8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text8", text or text8())
    return path


def article(number: int) -> str:
    return (
        f" = Title {number} = \n \n In {1900 + number} , the ship @-@ yard ( at Leith ) closed . "
        f"\n It cost 1 @,@ {number:03d} pounds . \n \n = = History = = \n \n Nothing more . \n \n"
    )


def wikitext_texts(articles: int = 9) -> dict[str, str]:
    third = articles // 3
    numbers = {"train": range(third), "valid": range(third, 2 * third), "test": range(third)}
    return {split: " \n" + "".join(map(article, n)) for split, n in numbers.items()}


def wikitext_zip(folder: pathlib.Path, name: str = "wikitext-2-raw", kind: str = "raw"):
    path = folder / f"{name}-v1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, text in wikitext_texts().items():
            archive.writestr(f"{name}/wiki.{split}.{kind}", text)
    return path


def story(number: int) -> str:
    return f"Once upon a time there was a cat.\n\nIt had {number} hats."


def tinystories(folder: pathlib.Path, stories: int = 20) -> pathlib.Path:
    mark = "\n<|endoftext|>\n"
    for split, numbers in (("train", range(stories)), ("valid", range(3))):
        text = "".join(f"{story(n)}{mark}" for n in numbers)
        (folder / f"TinyStories-{split}.txt").write_text(text)
    return folder


def ptb_texts() -> dict[str, bytes]:
    text = [" mr. <unk> is chairman of n n.v. the dutch publishing group "] * 5
    return {f"ptb.{split}.txt": lines(text) for split in ("train", "valid", "test")}


def ptb_folder(folder: pathlib.Path) -> pathlib.Path:
    for name, content in ptb_texts().items():
        (folder / name).write_bytes(content)
    return folder


def ptb_archive(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "simple-examples.tgz"
    named = {f"./simple-examples/data/{name}": data for name, data in ptb_texts().items()}
    path.write_bytes(tar_bytes(named, "w:gz"))
    return path
