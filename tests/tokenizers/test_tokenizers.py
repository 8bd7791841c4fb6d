"""Tokenizers: exact round trips, stable fingerprints, files, and the sentences of bad inputs."""

import json
import pickle
import unicodedata

import numpy as np
import pytest
import sentencepiece
from recipes import make_tokenizer

from flm_jax import errors, tokenizers
from flm_jax.tokenizers import base
from flm_jax.tokenizers import sentencepiece as sentencepiece_lib

NAMES = [unicodedata.name(chr(c)).lower() for c in range(0x250) if unicodedata.name(chr(c), None)]
SECTIONS = [
    {"name": "characters"},
    {"name": "sentencepiece", "options": {"vocab_size": 100}},
    {"name": "sentencepiece", "options": {"vocab_size": 100, "model_type": "bpe"}},
    {"name": "sentencepiece", "options": {"vocab_size": 400, "byte_fallback": True}},
]


def documents():
    return NAMES


@pytest.fixture(scope="module", params=range(len(SECTIONS)))
def tokenizer(request):
    return make_tokenizer(SECTIONS[request.param], documents)


def test_every_kind_is_tested():
    ours = {section["name"] for section in SECTIONS}
    assert ours == {"characters", "sentencepiece"} and ours <= tokenizers.TOKENIZERS.keys()


def test_decode_inverts_encode(tokenizer):
    for text in [*NAMES, "", "a", "  two  spaces ", "small letter small"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert not {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id} & set(ids)


def test_encode_batch_is_encode(tokenizer):
    texts = [*NAMES, "", "never seen: \N{SNOWMAN} 7"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(t) for t in texts]


def test_every_id_decodes_alone_and_specials_vanish(tokenizer):
    for i in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([i]), str) and tokenizer.piece(i)
    assert tokenizer.decode(range(tokenizer.vocab_size))
    ids = tokenizer.encode(NAMES[0])
    dressed = np.array([tokenizer.bos_id, *ids, tokenizer.eos_id, tokenizer.pad_id], np.uint16)
    assert tokenizer.decode(dressed) == NAMES[0]
    assert [tokenizer.piece(i) for i in (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id)] == [
        "[PAD]",
        "[BOS]",
        "[EOS]",
    ]
    assert "[UNK]" in [tokenizer.piece(i).strip() for i in range(tokenizer.vocab_size)]


def test_unknown_characters_and_lone_surrogates_never_raise(tokenizer):
    for text in ("\N{SNOWMAN}", "a\ud800b", "\x00", "\N{LOWER ONE EIGHTH BLOCK}"):
        tokenizer.decode(tokenizer.encode(text))
        tokenizer.encode_batch([text, "a"])


def test_pickle_and_saved_folder_give_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.encode("warm the processor")
    tokenizer.save(tmp_path / "t")
    for other in (pickle.loads(pickle.dumps(tokenizer)), tokenizers.load(tmp_path / "t")):
        assert other.fingerprint == tokenizer.fingerprint
        assert other.vocab_size == tokenizer.vocab_size
        assert other.encode_batch(NAMES) == tokenizer.encode_batch(NAMES)


def test_fingerprints_follow_the_content(tokenizer):
    fingerprints = [make_tokenizer(section, documents).fingerprint for section in SECTIONS]
    assert len(set(fingerprints)) == len(SECTIONS)
    other = make_tokenizer(SECTIONS[0], lambda: [*NAMES, "Z"])
    assert other.fingerprint not in fingerprints


def test_character_vocabulary_is_the_sorted_characters_behind_four_specials():
    made = make_tokenizer({"name": "characters"}, lambda: ["ba", "b c"])
    assert made.encode("abc ?") == [5, 6, 7, 4, 3]
    assert made.vocab_size == 8
    kept = make_tokenizer({"name": "characters", "options": {"min_count": 2}}, lambda: ["bab"])
    assert kept.pieces == "b" and kept.decode(kept.encode("ab")) == "\N{REPLACEMENT CHARACTER}b"


def test_byte_fallback_knows_every_character():
    made = make_tokenizer(SECTIONS[3], documents)
    assert made.decode(made.encode("\N{SNOWMAN} \U0001f600")) == "\N{SNOWMAN} \U0001f600"


def test_newlines_survive_sentencepiece():
    text = "one two\n\nthree\tfour"
    made = make_tokenizer(
        {"name": "sentencepiece", "options": {"vocab_size": 99, "character_coverage": 1.0}},
        lambda: [text, *NAMES],
    )
    assert made.decode(made.encode(text)) == text


MARK = "\N{LOWER ONE EIGHTH BLOCK}"


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_librarys_mark_of_a_space_comes_back_as_itself(model_type, tmp_path, caplog):
    texts = [f"bars {MARK}\N{LOWER HALF BLOCK}", f"{MARK}a {MARK} b{MARK}{MARK}  c", MARK]
    options = {"vocab_size": 99, "character_coverage": 1.0, "model_type": model_type}
    made = make_tokenizer(
        {"name": "sentencepiece", "options": options}, lambda: [*NAMES, *texts * 20]
    )
    made.save(tmp_path / "saved")
    for tokenizer in (made, pickle.loads(pickle.dumps(made)), tokenizers.load(tmp_path / "saved")):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert tokenizer.decode(ids) == text and tokenizer.encode(text) == ids
        shown = [tokenizer.piece(i) for i in tokenizer.encode(f"a{MARK}")]
        assert shown[-1].endswith(MARK) and " " not in shown[-1]
    assert not caplog.text


def test_models_that_do_not_know_the_mark_read_it_as_before_and_say_so(caplog):
    made = make_tokenizer(SECTIONS[1], documents)
    text = f"small{MARK}letter"
    assert made.encode(text) == made._processor.encode(text) == made.encode("small letter")
    assert made.decode(made.encode_batch([text])[0]) == "small letter"
    assert caplog.text.count("U+2581") == 1
    assert "reads as a space; take tokenizer byte_bpe or characters to keep it" in caplog.text


def test_long_documents_are_cut_for_training_without_losing_text(monkeypatch):
    from flm_jax.tokenizers import sentencepiece

    monkeypatch.setattr(sentencepiece, "_LONGEST_SENTENCE", 10)
    text = "one two three four five sixseveneightnineten eleven"
    pieces = list(sentencepiece._sentences([text, "", "short"]))
    assert max(map(len, pieces)) <= 10
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "") + "short"


def test_training_is_deterministic_and_cached(tmp_path, monkeypatch):
    from flm_jax.tokenizers import sentencepiece

    section = SECTIONS[1]
    first = make_tokenizer(section, documents, tmp_path)
    (path,) = (tmp_path / "sentencepiece").iterdir()
    path.write_bytes(b"damaged")
    assert make_tokenizer(section, documents, tmp_path).fingerprint == first.fingerprint
    assert path.read_bytes() == first._model

    monkeypatch.setattr(sentencepiece, "_train", lambda *_: pytest.fail("trained again"))
    assert make_tokenizer(section, documents, tmp_path).fingerprint == first.fingerprint
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        make_tokenizer(section, lambda: NAMES[1:], tmp_path)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        make_tokenizer(SECTIONS[2], documents, tmp_path)


def test_a_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="cannot write .*choose a folder"):
        make_tokenizer(SECTIONS[1], documents, tmp_path / "file")


def test_model_path_loads_a_model(tmp_path):
    made = make_tokenizer(SECTIONS[1], documents)
    path = tmp_path / "m.model"
    path.write_bytes(made._model)
    section = {"name": "sentencepiece", "options": {"model_path": str(path)}}
    loaded = make_tokenizer(section, lambda: pytest.fail("text was read"))
    assert loaded.fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 5000}, r"vocab_size is 5000, .* at most \d+ pieces; set vocab_size to \d+"),
        ({"vocab_size": 5000, "model_type": "bpe"}, r"vocab_size is 5000, .* at most \d+ pieces"),
        ({"vocab_size": 8}, r"vocab_size is 8, .* alone need \d+; set vocab_size to \d+ or more"),
        ({"vocab_size": 2}, "vocab_size is 2, .* at least 5"),
        ({"model_type": "word"}, "model_type is 'word', .* 'unigram' or 'bpe'"),
        ({"character_coverage": 7.0}, r"character_coverage is 7.0, .* 0.98 ... 1.0"),
        ({"vocabsize": 9}, "'vocabsize'; did you mean vocab_size.*: vocab_size, model"),
        ({"model_path": "/nowhere/x.model"}, "cannot read .* /nowhere/x.model: No such file"),
    ],
)
def test_bad_sentencepiece_options(options, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        make_tokenizer({"name": "sentencepiece", "options": options}, documents)


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 50, b"\xff\x00" * 40])
def test_garbage_model_file(tmp_path, content):
    path = tmp_path / "g.model"
    path.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"g\.model is not a SentencePiece model"):
        make_tokenizer({"name": "sentencepiece", "options": {"model_path": str(path)}}, documents)


def test_a_model_without_begin_and_end_marks(tmp_path):
    path = tmp_path / "m.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(documents()),
            model_writer=file,
            vocab_size=60,
            hard_vocab_limit=False,
            bos_id=-1,
            minloglevel=2,
        )
    with pytest.raises(errors.UserError, match=r"m\.model has no BOS or no EOS .*bos_id and"):
        make_tokenizer({"name": "sentencepiece", "options": {"model_path": str(path)}}, documents)


def test_other_complaints_of_the_trainer_are_passed_on():
    error = sentencepiece_lib._explained("Internal: odd", {"vocab_size": 9})
    assert str(error) == "SentencePiece cannot train with {'vocab_size': 9}: Internal: odd"


def test_empty_text_is_refused():
    for name, sentence in (
        ("characters", "no character occurs 1 times"),
        ("sentencepiece", "training text is empty"),
    ):
        with pytest.raises(errors.UserError, match=sentence):
            make_tokenizer({"name": name}, lambda: ["", ""])


def test_unknown_names_and_options():
    with pytest.raises(errors.UserError, match="unknown tokenizer 'words'.*: .*characters"):
        make_tokenizer({"name": "words"}, documents)
    with pytest.raises(errors.UserError, match="'characters' has no option 'size'.*: min_count"):
        make_tokenizer({"name": "characters", "options": {"size": 3}}, documents)
    with pytest.raises(errors.UserError, match="min_count is 0, but must be at least 1"):
        make_tokenizer({"name": "characters", "options": {"min_count": 0}}, documents)


def test_damaged_folders_get_a_sentence(tmp_path):
    with pytest.raises(errors.UserError, match="no tokenizer in .*nowhere"):
        tokenizers.load(tmp_path / "nowhere")
    made = make_tokenizer(SECTIONS[1], documents)
    made.save(tmp_path)
    model, meta = tmp_path / "sentencepiece.model", tmp_path / base.META_FILE
    model.write_bytes(made._model[:-1])
    with pytest.raises(errors.UserError, match="sentencepiece.model is damaged"):
        tokenizers.load(tmp_path)
    model.unlink()
    with pytest.raises(errors.UserError, match="incomplete: cannot read sentencepiece.model"):
        tokenizers.load(tmp_path)
    made.save(tmp_path)
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "name": "words"}))
    with pytest.raises(errors.UserError, match="unknown tokenizer 'words'"):
        tokenizers.load(tmp_path)
    made.save(tmp_path)
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "fingerprint": "a" * 64}))
    with pytest.raises(errors.UserError, match="is not the one that was saved .* instead of aaaa"):
        tokenizers.load(tmp_path)
    meta.write_text("{")
    with pytest.raises(errors.UserError, match="flm_tokenizer.json is damaged"):
        tokenizers.load(tmp_path)
    with pytest.raises(errors.UserError, match="cannot write .*choose a folder"):
        made.save(meta)
    meta.unlink()
    meta.mkdir()
    with pytest.raises(errors.UserError, match="cannot read .*flm_tokenizer.json: Is a directory"):
        tokenizers.load(tmp_path)
