//! Wycheproof's sets, all vectors with the sizes that ESP has. Shortened ICVs are those of the good vectors cut off,
//! and with each of their bits flipped.

use culvert_esp::{Backend, MAX_ICV};
use culvert_proto::sa::{Algorithm, Cipher};
use wycheproof::{TestResult, aead, mac_with_nonce};

use crate::{Case, ciphers, report};

/// Bits of the nonce and of the whole ICV.
const SIZES: (usize, usize) = (96, 128);

/// A vector, and whether it is good.
type Judged = (Case, bool);

/// The vectors for `cipher`, with whole ICVs.
fn cases(cipher: Cipher) -> Vec<Judged> {
    if !cipher.encrypts() {
        return gmac_cases(cipher.key_length());
    }
    let set = match cipher.algorithm() {
        Algorithm::ChaCha20Poly1305 => aead::TestName::ChaCha20Poly1305,
        Algorithm::Aes128Gcm | Algorithm::Aes192Gcm | Algorithm::Aes256Gcm => {
            aead::TestName::AesGcm
        }
    };
    let groups = aead::TestSet::load(set).unwrap().test_groups;
    let fitting = groups.into_iter().filter(|group| {
        (group.nonce_size, group.tag_size) == SIZES && group.key_size == cipher.key_length() * 8
    });
    let judged = |test: aead::Test| {
        let case = Case {
            name: format!("test {} ({})", test.tc_id, test.comment),
            key: test.key.to_vec(),
            nonce: test.nonce[..].try_into().unwrap(),
            aad: test.aad.to_vec(),
            clear: Some(test.pt.to_vec()),
            sealed: test.ct.to_vec(),
            icv: test.tag.to_vec(),
        };
        (case, test.result != TestResult::Invalid)
    };
    fitting.flat_map(|group| group.tests).map(judged).collect()
}

/// The vectors of AES-GMAC: the MAC is the ICV of an empty text (NIST SP 800-38D §3), whose AAD is the message.
fn gmac_cases(key_length: usize) -> Vec<Judged> {
    let set = mac_with_nonce::TestName::Gmac;
    let groups = mac_with_nonce::TestSet::load(set).unwrap().test_groups;
    let fitting = groups.into_iter().filter(|group| {
        (group.nonce_size, group.tag_size) == SIZES && group.key_size == key_length * 8
    });
    let judged = |test: mac_with_nonce::Test| {
        let case = Case {
            name: format!("test {} ({})", test.tc_id, test.comment),
            key: test.key.to_vec(),
            nonce: test.nonce[..].try_into().unwrap(),
            aad: test.msg.to_vec(),
            clear: Some(Vec::new()),
            sealed: Vec::new(),
            icv: test.tag.to_vec(),
        };
        (case, test.result != TestResult::Invalid)
    };
    fitting.flat_map(|group| group.tests).map(judged).collect()
}

/// Runs the vectors for `cipher`; returns how many were good and bad, and how many flipped bits were refused.
fn run(cipher: Cipher, backend: Backend) -> (usize, usize, usize) {
    let (mut good, mut bad, mut flipped) = (0, 0, 0);
    for (mut case, is_good) in cases(cipher) {
        let aead = case.aead(cipher.algorithm(), backend);
        case.icv.truncate(cipher.icv_length());
        if is_good {
            case.agrees(&aead);
            flipped += case.refuses_flips(&aead);
            good += 1;
            continue;
        }
        let clear = case.clear.as_deref().unwrap();
        let genuine = case.seal(&aead, clear) == (case.sealed.clone(), case.icv.clone());
        if genuine {
            // What is wrong with it was at the end of its ICV, and is cut off.
            assert!(cipher.icv_length() < MAX_ICV, "{}", case.name);
        } else {
            case.is_refused(&aead);
            bad += 1;
        }
    }
    (good, bad, flipped)
}

#[test]
fn wycheproof() {
    for &backend in Backend::ALL {
        for cipher in ciphers(backend) {
            // An implicit IV is no matter of the AEAD's.
            if cipher.iv_length() == 0 {
                continue;
            }
            let (good, bad, flipped) = run(cipher, backend);
            let counts = [
                (good, "good"),
                (bad, "bad"),
                (flipped, "bits of ICVs flipped"),
            ];
            report("Wycheproof", cipher, backend, &counts);
            assert!(good >= 15 && bad >= 10, "{cipher}: {good} good, {bad} bad");
            assert_eq!(flipped, good * cipher.icv_length() * 8);
        }
    }
}
