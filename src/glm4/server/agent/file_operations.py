"""The operations of /v1/files and /v1/vector_stores."""

from __future__ import annotations

from glm4.api.files.request import (
    BATCH_FIELDS,
    CHANGE_STORE_FIELDS,
    FILE_FIELDS,
    MEMBER_FIELDS,
    SEARCH_FIELDS,
    STORE_FIELDS,
)
from glm4.server.agent import files
from glm4.server.agent import vector_stores as stores
from glm4.server.operations import READING, TEXT, Operation

_FILE, _STORE, _BATCH = "/v1/files/{file_id}", "/v1/vector_stores/{vector_store_id}", "/file_batches/{batch_id}"
_FILE_ID, _STORE_ID = {"file_id": "the id of a file"}, {"vector_store_id": "the id of a vector store"}
_MEMBER_ID, _BATCH_ID = {**_STORE_ID, **_FILE_ID}, {**_STORE_ID, "batch_id": "the id of a batch of files"}
_PAGING = {
    "limit": "items per page", "order": "asc or desc", "after": "id of the last item seen",
    "before": "id of the item that follows",
}  # fmt: skip
_FILTER = {"filter": "completed or failed"}

FILE_OPERATIONS: tuple[Operation, ...] = (
    Operation("post", "/v1/files", files.create_file, "Files", "Keep a file for later requests",
        "上传文件，供之后的请求使用", "File", FILE_FIELDS, ("file", "purpose"),
        {"file": "text", "purpose": "assistants"}, errors=READING, media="multipart/form-data"),
    Operation("get", "/v1/files", files.list_files, "Files", "The files of this key", "列出文件", "FileList",
        errors=(400,), parameters={**_PAGING, "purpose": "only those with this purpose"}),
    Operation("get", _FILE, files.retrieve_file, "Files", "What is known of a file", "查看文件信息", "File",
        errors=(404,), parameters=_FILE_ID),
    Operation("delete", _FILE, files.delete_file, "Files", "Delete a file, also from its vector stores",
        "删除文件，并从知识库中移除", "DeletedObject", errors=(404,), parameters=_FILE_ID),
    Operation("get", f"{_FILE}/content", files.file_content, "Files", "A file as it was sent", "下载文件", TEXT,
        errors=(404,), parameters=_FILE_ID),
    Operation("post", "/v1/vector_stores", stores.create_store, "Files", "Collect files to search them together",
        "建立知识库，一起检索多个文件", "VectorStore", STORE_FIELDS, (), {"name": "Handbooks"}, errors=READING),
    Operation("get", "/v1/vector_stores", stores.list_stores, "Files", "The vector stores of this key", "列出知识库",
        "VectorStoreList", errors=(400,), parameters=_PAGING),
    Operation("get", _STORE, stores.retrieve_store, "Files", "A vector store", "查看知识库", "VectorStore",
        errors=(404,), parameters=_STORE_ID),
    Operation("post", _STORE, stores.change_store, "Files", "Change a vector store's name or metadata",
        "修改知识库的名称或元数据", "VectorStore", CHANGE_STORE_FIELDS, (), {"name": "Manuals"}, errors=READING,
        parameters=_STORE_ID),
    Operation("delete", _STORE, stores.delete_store, "Files", "Delete a vector store; its files stay",
        "删除知识库，文件保留", "DeletedObject", errors=(404,), parameters=_STORE_ID),
    Operation("post", f"{_STORE}/search", stores.search, "Files", "Passages with the words of a query (BM25)",
        "按词检索段落（BM25）", "VectorStoreResults", SEARCH_FIELDS, ("query",), {"query": "vacation days"},
        errors=READING, parameters=_STORE_ID),
    Operation("post", f"{_STORE}/files", stores.add_file, "Files", "Add a file to a vector store", "把文件加入知识库",
        "VectorStoreFile", MEMBER_FIELDS, ("file_id",), {"file_id": "file-…"}, errors=READING, parameters=_STORE_ID),
    Operation("get", f"{_STORE}/files", stores.list_files, "Files", "The files of a vector store", "列出知识库中的文件",
        "VectorStoreFileList", errors=(400, 404), parameters={**_STORE_ID, **_PAGING, **_FILTER}),
    Operation("get", f"{_STORE}/files/{{file_id}}", stores.retrieve_file, "Files", "A file of a vector store",
        "查看知识库中的文件", "VectorStoreFile", errors=(404,), parameters=_MEMBER_ID),
    Operation("delete", f"{_STORE}/files/{{file_id}}", stores.remove_file, "Files",
        "Take a file out of a vector store", "从知识库移除文件", "DeletedObject", errors=(404,), parameters=_MEMBER_ID),
    Operation("get", f"{_STORE}/files/{{file_id}}/content", stores.file_content, "Files",
        "The text of a file, as it is searched", "文件中用于检索的文字", "VectorStoreFileContent", errors=(400, 404),
        parameters=_MEMBER_ID),
    Operation("post", f"{_STORE}/file_batches", stores.create_batch, "Files", "Add several files to a vector store",
        "把多个文件加入知识库", "VectorStoreFileBatch", BATCH_FIELDS, (), {"file_ids": ["file-…"]}, errors=READING,
        parameters=_STORE_ID),
    Operation("get", f"{_STORE}{_BATCH}", stores.retrieve_batch, "Files", "What became of several files",
        "查看批量加入的结果", "VectorStoreFileBatch", errors=(404,), parameters=_BATCH_ID),
    Operation("get", f"{_STORE}{_BATCH}/files", stores.list_batch, "Files", "The files that were added together",
        "列出批量加入的文件", "VectorStoreFileList", errors=(400, 404), parameters={**_BATCH_ID, **_PAGING, **_FILTER}),
)  # fmt: skip
