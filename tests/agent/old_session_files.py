"""Files of saved conversations as earlier versions of glm4 made them: their statements, word for word."""

from __future__ import annotations

import sqlite3
from pathlib import Path

APPLICATION_ID = 0x474C4D35

VERSION_1 = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    system TEXT NOT NULL,
    model TEXT NOT NULL,
    params TEXT NOT NULL,
    leaf TEXT,
    pinned INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE INDEX conversations_by_update ON conversations (owner, pinned DESC, updated DESC);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT REFERENCES messages (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    model TEXT NOT NULL,
    messages TEXT NOT NULL,
    parts TEXT NOT NULL,
    sources TEXT NOT NULL,
    usage TEXT NOT NULL,
    body TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX messages_by_conversation ON messages (conversation, number);
CREATE INDEX messages_by_parent ON messages (parent);
CREATE TABLE files (
    sha256 TEXT NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    file TEXT NOT NULL,
    PRIMARY KEY (conversation, sha256)
) WITHOUT ROWID;
CREATE INDEX files_by_content ON files (sha256);
CREATE VIRTUAL TABLE found USING fts5 (body, content = 'messages', content_rowid = 'number', tokenize = 'trigram');
CREATE TRIGGER message_added AFTER INSERT ON messages BEGIN
    INSERT INTO found (rowid, body) VALUES (new.number, new.body); END;
CREATE TRIGGER message_changed AFTER UPDATE OF body ON messages BEGIN
    INSERT INTO found (found, rowid, body) VALUES ('delete', old.number, old.body);
    INSERT INTO found (rowid, body) VALUES (new.number, new.body); END;
CREATE TRIGGER message_removed AFTER DELETE ON messages BEGIN
    INSERT INTO found (found, rowid, body) VALUES ('delete', old.number, old.body); END;
"""

_CHANGED = (
    (" (owner, pinned DESC, updated DESC);", " (owner, pinned DESC, updated DESC, id DESC);"),
    ("parent TEXT REFERENCES messages (id) ON DELETE CASCADE,", "parent TEXT,"),
    ("CREATE INDEX messages_by_parent ON messages (parent);\n", ""),
)
"""What later files of version 2 have instead."""

_FILES = """
CREATE TABLE uploads (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    file TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE INDEX uploads_by_owner ON uploads (owner, number);
CREATE INDEX uploads_by_content ON uploads (sha256);
CREATE TABLE vector_stores (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created REAL NOT NULL,
    active REAL NOT NULL
);
CREATE INDEX vector_stores_by_owner ON vector_stores (owner, number);
CREATE TABLE vector_store_files (
    number INTEGER PRIMARY KEY,
    store TEXT NOT NULL REFERENCES vector_stores (id) ON DELETE CASCADE,
    upload TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    batch TEXT NOT NULL,
    attributes TEXT NOT NULL,
    problem TEXT NOT NULL,
    created REAL NOT NULL,
    UNIQUE (store, upload)
);
CREATE INDEX vector_store_files_by_upload ON vector_store_files (upload);
"""


def _version_2() -> str:
    text = VERSION_1
    for old, new in _CHANGED:
        assert old in text
        text = text.replace(old, new)
    return text + _FILES


STATEMENTS = {1: VERSION_1, 2: _version_2()}

ROWS = """
INSERT INTO conversations VALUES ('c1', 'me', 'Rivers', 'Be brief.', 'glm-4', '{"tools":[]}', 'm2', 1, 100.0, 200.0);
INSERT INTO messages (id, conversation, parent, role, status, model, messages, parts, sources, usage, body, created)
    VALUES ('m1', 'c1', NULL, 'user', 'completed', '', '[{"role":"user","content":"Which river?"}]',
    '[{"kind":"text","text":"Which river?"}]', '[]', '{}', 'Which river?', 101.0);
INSERT INTO messages (id, conversation, parent, role, status, model, messages, parts, sources, usage, body, created)
    VALUES ('m2', 'c1', 'm1', 'assistant', 'completed', 'glm-4', '[{"role":"assistant","content":"The Yangtze."}]',
    '[{"kind":"text","text":"The Yangtze."}]', '[]', '{"prompt":3}', 'The Yangtze.', 102.0);
INSERT INTO files VALUES ('aa', 'c1', '{"sha256":"aa","name":"a.txt","media_type":"text/plain","nbytes":3,"width":null,
    "height":null,"alt":null}');
"""


def write_old(path: Path, version: int, *more: str) -> None:
    """A file of this version with a conversation of `me`, and further statements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = sqlite3.connect(path)
    file.executescript(STATEMENTS[version] + ROWS + "".join(more))
    file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    file.execute(f"PRAGMA user_version = {version}")
    file.commit()
    file.close()
