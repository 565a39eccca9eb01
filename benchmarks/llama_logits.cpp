// The logits that llama.cpp computes for given tokens: what it makes of a quantised model, activations and all.
//
//     llama_logits MODEL.gguf SEQUENCE THREADS < ids (int32) > logits (float32, [ids, vocabulary])
//
// Every SEQUENCE tokens are a text of their own. Compiled by quality_llama.py against llama.cpp's headers.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "llama.h"

static int fail(const char* what) {
    fprintf(stderr, "llama_logits: %s\n", what);
    return 1;
}

int main(int count, char** words) {
    if (count != 4) return fail("usage: llama_logits MODEL.gguf SEQUENCE THREADS");
    const int sequence = atoi(words[2]), threads = atoi(words[3]);
    ggml_backend_load_all();
    llama_model* model = llama_model_load_from_file(words[1], llama_model_default_params());
    if (model == nullptr) return fail("cannot load the model");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = static_cast<uint32_t>(sequence);
    params.n_threads = params.n_threads_batch = threads;
    llama_context* context = llama_init_from_model(model, params);
    if (context == nullptr) return fail("cannot make a context");
    const size_t vocabulary = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    llama_batch batch = llama_batch_init(sequence, 0, 1);
    std::vector<int32_t> ids(static_cast<size_t>(sequence));
    size_t read = 0;
    while ((read = fread(ids.data(), sizeof(int32_t), ids.size(), stdin)) > 0) {
        batch.n_tokens = static_cast<int32_t>(read);
        for (int i = 0; i < batch.n_tokens; ++i) {
            batch.token[i] = ids[static_cast<size_t>(i)];
            batch.pos[i] = i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = 1;
        }
        llama_memory_clear(llama_get_memory(context), true);
        if (llama_decode(context, batch) != 0) return fail("llama_decode failed");
        for (int i = 0; i < batch.n_tokens; ++i) {
            if (fwrite(llama_get_logits_ith(context, i), sizeof(float), vocabulary, stdout) != vocabulary) {
                return fail("nobody reads the logits");
            }
        }
    }
    llama_batch_free(batch);
    llama_free(context);
    llama_model_free(model);
    return fflush(stdout) == 0 ? 0 : fail("nobody reads the logits");
}
