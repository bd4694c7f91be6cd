"""Texts that others wrote, shown so that no terminal, Markdown or HTML obeys them. Light: whoever says something reads
them here.

    visible("a\\x1b[2Jb")    a\\x1b[2Jb, in nine plain characters: nothing is hidden, moved or coloured
    inert("<b>|x|</b>")     &lt;b&gt;&#124;x&#124;&lt;/b&gt;: shown in Markdown and HTML as it is written
"""

import re

# What Markdown or HTML takes for markup: entities never do. An underscore begins emphasis at the edge of a word only,
# and an address is made a link without any markup.
_MARKUP = re.compile(r"[&<>|`*~\[\]\\$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?i:(?<=www)\.)|@(?=[\w.-]*\.)")
_BEGINNING = re.compile(r"[#+=\-:]|\d{1,9}(?=[.)])")  # of a line: what makes a heading, a list or a rule of it
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def visible(text: str, keep: str = "") -> str:
    """Return the text with everything that is not printed written out: escapes, controls, marks that turn the direction
    of reading, line separators, halves of characters. `keep` names those that are ours, such as a newline.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def inert(text: str) -> str:
    """Return a text that Markdown, and HTML made of it, show as it is written, within a line or a cell of a table."""
    return _MARKUP.sub(lambda mark: _NAMED.get(mark[0], f"&#{ord(mark[0])};"), visible(text)).strip()


def inert_line(text: str) -> str:
    """Return the same for a text that stands at the beginning of a line, or of an entry of a list."""
    plain = inert(text)
    first = _BEGINNING.match(plain)
    return plain if first is None else "".join(f"&#{ord(c)};" for c in first[0]) + plain[first.end() :]


def code(text: str) -> str:
    """Return a text as Markdown shows code, within a line."""
    return f"`{visible(text).replace('`', chr(39)).strip() or '-'}`"
