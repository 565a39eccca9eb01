"""The tables of `SessionStore`. Conversations are trees: a message's parent is the message it answers."""

from glm4.system.sqlite_file import Schema

_STATEMENTS = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,         -- key it was made with; for others it does not exist
    title TEXT NOT NULL,
    system TEXT NOT NULL,        -- the user's instructions
    model TEXT NOT NULL,
    params TEXT NOT NULL,        -- JSON: sampling options and tools
    leaf TEXT,                   -- last message of the branch that is shown
    pinned INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE INDEX conversations_by_update ON conversations (owner, pinned DESC, updated DESC, id DESC);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent TEXT,                 -- no reference: to delete a long chain would nest deeper than SQLite can
    role TEXT NOT NULL,          -- user or assistant
    status TEXT NOT NULL,        -- running, completed, stopped, limit, error, interrupted
    model TEXT NOT NULL,
    messages TEXT NOT NULL,      -- JSON: what the model reads of it, in OpenAI's form
    parts TEXT NOT NULL,         -- JSON: what people see of it
    sources TEXT NOT NULL,       -- JSON: numbered sources it added
    usage TEXT NOT NULL,         -- JSON
    body TEXT NOT NULL,          -- visible text, to be searched
    created REAL NOT NULL
);
CREATE INDEX messages_by_conversation ON messages (conversation, number);
CREATE TABLE files (
    sha256 TEXT NOT NULL,
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    file TEXT NOT NULL,          -- JSON: StoredFile
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

_UPLOADS = """
CREATE TABLE uploads (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,     -- file-…
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    file TEXT NOT NULL,          -- JSON: StoredFile
    created REAL NOT NULL
);
CREATE INDEX uploads_by_owner ON uploads (owner, number);
CREATE INDEX uploads_by_content ON uploads (sha256);
CREATE TABLE vector_stores (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,     -- vs_…
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    metadata TEXT NOT NULL,      -- JSON
    created REAL NOT NULL,
    active REAL NOT NULL
);
CREATE INDEX vector_stores_by_owner ON vector_stores (owner, number);
CREATE TABLE vector_store_files (
    number INTEGER PRIMARY KEY,
    store TEXT NOT NULL REFERENCES vector_stores (id) ON DELETE CASCADE,
    upload TEXT NOT NULL REFERENCES uploads (id) ON DELETE CASCADE,
    batch TEXT NOT NULL,         -- vsfb_… it came with, or empty
    attributes TEXT NOT NULL,    -- JSON
    problem TEXT NOT NULL,       -- why it could not be read; empty if it was
    created REAL NOT NULL,
    UNIQUE (store, upload)
);
CREATE INDEX vector_store_files_by_upload ON vector_store_files (upload);
"""
"""What version 2 added: files by ids of their own, and collections of them."""

_PROMPTS = """
CREATE TABLE prompts (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    text TEXT NOT NULL,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE INDEX prompts_by_owner ON prompts (owner, number);
"""
"""What version 3 added: system prompts with names."""

SCHEMA = Schema(
    application_id=0x474C4D35,  # "GLM5": not the store of responses
    version=3,
    statements=_STATEMENTS + _UPLOADS + _PROMPTS,
    upgrades={1: _UPLOADS, 2: _PROMPTS},
)
