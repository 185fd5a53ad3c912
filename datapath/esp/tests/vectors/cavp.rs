//! A sample of NIST's vectors for AES-GCM, with the three lengths of ICV that RFC 4106 has, and the vectors of
//! RFC 8439.

use culvert_esp::{Backend, MAX_ICV};
use culvert_proto::sa::{Algorithm, Cipher};

use crate::records::{Record, parse};
use crate::{Case, report};

/// The case of a record of NIST's.
fn nist(record: &Record) -> Case {
    let sizes = ["Keylen", "Taglen", "AADlen", "PTlen"].map(|name| record.number(name) / 8);
    let values = ["Key", "Tag", "AAD", "CT"].map(|name| record.bytes(name));
    assert_eq!(sizes, [0, 1, 2, 3].map(|at| values[at].len()));
    let [key, icv, aad, sealed] = values;
    Case {
        name: format!("{} of {sizes:?}", record.text("Count")),
        key,
        nonce: record.bytes("IV").try_into().unwrap(),
        aad,
        clear: (!record.has("FAIL")).then(|| record.bytes("PT")),
        sealed,
        icv,
    }
}

#[test]
fn nist_cavp() {
    let cases: Vec<Case> = parse(include_str!("cavp.rsp")).iter().map(nist).collect();
    assert_eq!(cases.len(), 342);
    for &backend in Backend::ALL {
        let mut seen = 0;
        for cipher in Cipher::ALL {
            let encrypts_by_gcm = cipher.encrypts()
                && cipher.iv_length() > 0
                && cipher.algorithm() != Algorithm::ChaCha20Poly1305;
            if !encrypts_by_gcm {
                continue;
            }
            let fitting = cases.iter().filter(|case| {
                (case.key.len(), case.icv.len()) == (cipher.key_length(), cipher.icv_length())
            });
            seen += fitting.clone().count();
            if !backend.serves(cipher.algorithm()) {
                continue;
            }
            let (mut good, mut bad) = (0, 0);
            for case in fitting {
                let aead = case.aead(cipher.algorithm(), backend);
                if case.clear.is_some() {
                    case.agrees(&aead);
                    good += 1;
                } else {
                    case.is_refused(&aead);
                    bad += 1;
                }
            }
            report(
                "NIST CAVP",
                cipher,
                backend,
                &[(good, "good"), (bad, "bad")],
            );
            assert!(good >= 24 && bad >= 12, "{cipher}: {good} good, {bad} bad");
        }
        assert_eq!(seen, cases.len(), "a case fits no cipher");
    }
}

#[test]
fn rfc_8439() {
    let cipher = Cipher::ChaCha20Poly1305;
    for &backend in Backend::ALL {
        let (mut good, mut flipped) = (0, 0);
        for record in parse(include_str!("rfc8439.txt")) {
            let mut sealed = record.bytes("ctext+tag");
            let icv = sealed.split_off(sealed.len() - MAX_ICV);
            let case = Case {
                name: record.text("name").to_owned(),
                key: record.bytes("key"),
                nonce: record.bytes("nonce").try_into().unwrap(),
                aad: record.bytes("aad"),
                clear: Some(record.bytes("plaintext")),
                sealed,
                icv,
            };
            let aead = case.aead(cipher.algorithm(), backend);
            case.agrees(&aead);
            flipped += case.refuses_flips(&aead);
            good += 1;
        }
        let counts = [(good, "good"), (flipped, "bits of ICVs flipped")];
        report("RFC 8439", cipher, backend, &counts);
        assert_eq!(good, 2);
    }
}
