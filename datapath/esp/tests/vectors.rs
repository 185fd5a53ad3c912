//! Published vectors, through every backend: Wycheproof's of AES-GCM and ChaCha20-Poly1305, good and bad.
#![expect(clippy::unwrap_used, reason = "a test's helper")]

use culvert_esp::aead::Aead;
use culvert_esp::{Backend, ICV};
use culvert_proto::sa::Cipher;
use wycheproof::TestResult;
use wycheproof::aead::{Test, TestName, TestSet};

/// Bits of the nonce and of the ICV that ESP has.
const SIZES: (usize, usize) = (96, 128);

/// Runs the vectors of `set` whose sizes are those of `cipher`; returns how many were good and bad.
fn run(set: TestName, cipher: Cipher, backend: Backend) -> (usize, usize) {
    let (mut good, mut bad) = (0, 0);
    let groups = TestSet::load(set).unwrap().test_groups;
    let fitting = groups.into_iter().filter(|group| {
        (group.nonce_size, group.tag_size) == SIZES && group.key_size == cipher.key_length() * 8
    });
    for test in fitting.flat_map(|group| group.tests) {
        let aead = Aead::new(backend, cipher, &test.key).unwrap();
        match test.result {
            TestResult::Valid | TestResult::Acceptable => {
                agrees(&aead, &test);
                good += 1;
            }
            TestResult::Invalid => {
                refuses(&aead, &test);
                bad += 1;
            }
        }
    }
    (good, bad)
}

fn sealed(test: &Test) -> Vec<u8> {
    [&test.ct[..], &test.tag[..]].concat()
}

fn agrees(aead: &Aead, test: &Test) {
    let nonce = test.nonce[..].try_into().unwrap();
    let mut text = test.pt.to_vec();
    let icv = aead.seal(nonce, &test.aad, &mut text).unwrap();
    text.extend(icv);
    assert_eq!(text, sealed(test), "sealing, test {}", test.tc_id);
    aead.open(nonce, &test.aad, &mut text).unwrap();
    assert_eq!(text[..text.len() - ICV], test.pt[..], "test {}", test.tc_id);
}

fn refuses(aead: &Aead, test: &Test) {
    let nonce = test.nonce[..].try_into().unwrap();
    let opened = aead.open(nonce, &test.aad, &mut sealed(test));
    assert!(opened.is_err(), "test {} was taken: {test:?}", test.tc_id);
}

#[test]
fn wycheproof() {
    for &backend in Backend::ALL {
        for cipher in Cipher::ALL {
            let set = match cipher {
                Cipher::Aes128Gcm16 | Cipher::Aes256Gcm16 => TestName::AesGcm,
                Cipher::ChaCha20Poly1305 => TestName::ChaCha20Poly1305,
            };
            let (good, bad) = run(set, cipher, backend);
            println!("{cipher} by {}: {good} good, {bad} bad", backend.name());
            assert!(good > 30 && bad > 10, "{cipher}: {good} good, {bad} bad");
        }
    }
}
