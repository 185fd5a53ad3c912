/* What Culvert takes of Intel's multi-buffer library. Only the header knows where things stand in a manager and in a job, so C
 * must do this. */
#include <intel-ipsec-mb.h>
#include <stdbool.h>

/* As library.rs has them. */
#define GCM_KEY 1024
#define CONTEXT 128

_Static_assert(IMB_VERSION_NUM >= IMB_VERSION(1, 3, 0), "older ones were not tried");
_Static_assert(sizeof(struct gcm_key_data) <= GCM_KEY, "GCM_KEY is too small");
_Static_assert(sizeof(struct gcm_context_data) <= CONTEXT, "CONTEXT is too small");

/* AES-GCM's functions keep their state in what they are given: they are called without any manager. */
struct gcm {
    aes_gcm_pre_t expand;
    aes_gcm_enc_dec_t seal, open;
};

struct library {
    struct gcm gcm128, gcm192, gcm256;
    bool avx512;
};

enum { READY, OTHER_RELEASE, NO_MEMORY, UNFIT_CPU, BROKEN };

/* A manager for one thread, or NULL. */
IMB_MGR *culvert_ipsec_mb_manager(void)
{
    IMB_MGR *manager = alloc_mb_mgr(0);
    if (manager != NULL)
        init_mb_mgr_auto(manager, NULL);
    return manager;
}

/* Fills `library` for this CPU, or says why not. */
int culvert_ipsec_mb_load(struct library *library)
{
    /* Releases of one soname need not have one layout. */
    if (imb_get_version() >> 8 != IMB_VERSION_NUM >> 8)
        return OTHER_RELEASE;
    IMB_MGR *manager = culvert_ipsec_mb_manager();
    if (manager == NULL)
        return NO_MEMORY;
    int problem = imb_get_errno(manager) ? BROKEN : READY;
    /* Without these instructions the library emulates them, slowly. */
    if ((manager->features & IMB_CPUFLAGS_SSE) != IMB_CPUFLAGS_SSE)
        problem = UNFIT_CPU;
    *library = (struct library) {
        .gcm128 = { manager->gcm128_pre, manager->gcm128_enc, manager->gcm128_dec },
        .gcm192 = { manager->gcm192_pre, manager->gcm192_enc, manager->gcm192_dec },
        .gcm256 = { manager->gcm256_pre, manager->gcm256_enc, manager->gcm256_dec },
        .avx512 = (manager->features & IMB_CPUFLAGS_AVX512_T2) == IMB_CPUFLAGS_AVX512_T2,
    };
    free_mb_mgr(manager);
    return problem;
}

/* Seals or opens `text` in place and writes the tag. The manager is this thread's, and has no other jobs, so this one is done
 * when the call is. */
bool culvert_ipsec_mb_chacha20_poly1305(IMB_MGR *manager, bool open, const uint8_t key[32], const uint8_t nonce[12],
                                        const void *aad, uint64_t aad_length, uint8_t *text, uint64_t length, uint8_t tag[16])
{
    IMB_JOB *job = IMB_GET_NEXT_JOB(manager);
    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = open ? IMB_DIR_DECRYPT : IMB_DIR_ENCRYPT;
    job->chain_order = open ? IMB_ORDER_HASH_CIPHER : IMB_ORDER_CIPHER_HASH;
    job->enc_keys = key;
    job->dec_keys = key;
    job->key_len_in_bytes = 32;
    job->src = text;
    job->dst = text;
    job->cipher_start_src_offset_in_bytes = 0;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = length;
    job->msg_len_to_hash_in_bytes = length;
    job->iv = nonce;
    job->iv_len_in_bytes = 12;
    job->u.CHACHA20_POLY1305.aad = aad;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = aad_length;
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = 16;
    job = IMB_SUBMIT_JOB_NOCHECK(manager);
    return job != NULL && job->status == IMB_STATUS_COMPLETED;
}
