"""Text in any encoding: marks first, then UTF-8, then the East Asian ones by how common the characters would be.

A wrong guess among GB18030, Big5, Shift-JIS and the Korean and Japanese EUCs gives valid but rare characters, so the
encoding whose text has the most everyday characters is right. What is none of these is left to charset-normalizer.
"""

from __future__ import annotations

from glm4.documents.formats.parsed import Parsed
from glm4.system.extras import Package, require_packages
from glm4.system.text_encoding import HEAD_NBYTES, TextEncodingError, decode_text, find_encoding

_PACKAGES = (Package("charset_normalizer", "3.3", distributions=("charset-normalizer",)),)
_SAMPLE_CHARACTERS = 5000
_MOST_DAMAGED = 0.01
# First bytes of the characters that each standard put first, as the more usual ones.
_USUAL_BYTES = {
    "gb18030": (0xB0, 0xD7), "big5hkscs": (0xA4, 0xC6), "cp932": (0x88, 0x97), "euc_jp": (0xB0, 0xCF),
    "cp949": (0xB0, 0xC8),
}  # fmt: skip
# The most frequent characters of newspapers and novels, simplified and traditional together.
_CHINESE = frozenset(
    "的一是不了在人有我他这個个们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能而子那得于於着著下自之年过過发發后後作里裡"
    "用道行所然家种種事成方多经經么麼去法学學如都同现現当當没沒动動面起看定天分还還进進好小部其些主样樣理心她本前开開但因只从從想实實"
    "日军軍者意无無力它与與长長把机機十民第公此已工使情明性知全三又关關点點正业業外将將两兩高间間由问問很最重并並物手应應战戰向头頭"
    "文体體政美相见見被利什二等产產或新己制製身果加西斯月话話合回特代内內信表化老给給世位次度门門任常先海通教儿兒原东東声聲提立及比"
    "员員解水名真论論处處走义義各入几幾口认認条條平系气氣题題活尔爾更别別打女变變四神总總何电電数數安少报報才结結反受目太量再感建务務"
    "做接必场場件计計管期市直德资資命山金指克许許统統区區保至队隊形社便空决決治展马馬科司五基眼书書非则則听聽白却卻界达達光放强強即像"
    "难難且权權思王象完设設式色路记記南品住告类類求据據程北边邊死张張该該交规規万萬取拉格望觉覺术術领領共确確传傳师師观觀清今切院让讓"
    "识識候带帶导導争爭运運笔筆测測试試章节節，。、；：？！“”‘’「」『』（）《》　"
)
_KANA = frozenset(chr(code) for code in range(0x3041, 0x30FF))

_KOREAN = frozenset(
    "이다는가의에을를은지하고로기도리사한서자어나아시대해그인스수정일라보과부있게전소여주국장만제비으면상들구적오원우무유조마모안동신성공선경관역"
    "문민실회방발계생학연중요개년월히것까저진청통거미습니더영내트드세물용분바차세반당교위"
)
_WESTERN = frozenset("àâäáãåæçéèêëíìîïñóòôöõøœúùûüýÿßÀÂÄÁÃÅÆÇÉÈÊËÍÎÏÑÓÔÖÕØŒÚÛÜ¡¿«»‘’“”„–—…€£§°·•©®™\u00a0")


def decode_any(data: bytes, parsed: Parsed) -> str | None:
    """The text; None if the bytes are no text. A guess, or damage, becomes a warning."""
    try:
        text = decode_text(data)
    except TextEncodingError:
        return _legacy(data, parsed)
    return text if _is_text(text) else None


def _legacy(data: bytes, parsed: Parsed) -> str | None:
    encoding, skipped = find_encoding(data[:HEAD_NBYTES])
    if encoding == "utf-8" and b"\0" in data[:HEAD_NBYTES]:
        return None
    text = data[skipped:].decode(encoding, "replace")
    damaged = text.count("\ufffd")
    if encoding != "utf-8" or (damaged <= max(1, _MOST_DAMAGED * sum(map(len, text.split()))) and not text.isascii()):
        if _decoded_characters(text) > 10 * damaged and _is_text(text):
            parsed.warn(f"{damaged} characters are damaged and shown as \ufffd")
            return text
        if encoding != "utf-8":
            return None
    found = _east_asian(data)
    if found is not None:
        return found
    return _other(data, parsed)


def _decoded_characters(text: str) -> int:
    """Characters beyond ASCII that were decoded: text in a legacy encoding has next to none as UTF-8."""
    return sum(char > "\x7f" and char != "\ufffd" for char in text)


def _east_asian(data: bytes) -> str | None:
    best, best_text = 0.3, None
    for encoding in _USUAL_BYTES:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            if error.start < len(data) - 3:  # the file may end inside a character
                continue
            text = data[: error.start].decode(encoding)
        score = _everyday(text, encoding)
        if score > best and _is_text(text):
            best, best_text = score, text
    return best_text


def _everyday(text: str, encoding: str) -> float:
    """How usual its characters beyond ASCII are: 1 for everyday ones, 0.4 for the encoding's usual ones."""
    foreign = [char for char in text[: 20 * _SAMPLE_CHARACTERS] if char > "\x7f"][:_SAMPLE_CHARACTERS]
    first, last = _USUAL_BYTES[encoding]
    score = 0.0
    for char in foreign:
        if char in _CHINESE or char in _KANA or char in _KOREAN:
            score += 1
        elif first <= char.encode(encoding)[0] <= last:
            score += 0.4
    return score / len(foreign) if foreign else 0.0


def _other(data: bytes, parsed: Parsed) -> str | None:
    require_packages("text in an unusual encoding", "documents", _PACKAGES)
    from charset_normalizer import from_bytes

    encoding = "cp1252"
    if not _is_western(data.decode(encoding, "replace")):
        match = from_bytes(data[: 1 << 18]).best()
        if match is None:
            return None
        encoding = match.encoding
    text = data.decode(encoding, "replace")
    if not _is_text(text):
        return None
    parsed.warn(f"its encoding was guessed as {encoding}; save it as UTF-8 if characters are wrong")
    return text


def _is_western(text: str) -> bool:
    """Whether it is mostly ASCII with the accents of western Europe; charset-normalizer guesses eastern ones there."""
    foreign = [char for char in text if char > "\x7f"]
    letters = sum(char.isalpha() for char in text)
    return 3 * len(foreign) < letters and sum(char in _WESTERN for char in foreign) > 0.95 * len(foreign)


def _is_text(text: str) -> bool:
    """Whether it has next to no control characters, which binary files are full of."""
    sample = text[:_SAMPLE_CHARACTERS]
    controls = sum(char < " " and char not in "\t\n\r\f\x1b" for char in sample)
    return "\0" not in sample and controls <= 3 + len(sample) // 200
