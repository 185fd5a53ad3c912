//! Which implementation of a cipher is used: the fastest of this build on this CPU, or the one that the settings name.

use std::collections::BTreeMap;
use std::str::FromStr;

use culvert_proto::sa::Algorithm;

/// An implementation of the ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Intel's multi-buffer library.
    #[cfg(feature = "ipsec-mb")]
    IpsecMb,
    /// AWS-LC through aws-lc-rs.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// ring.
    #[cfg(feature = "ring")]
    Ring,
    /// aes-gcm and chacha20poly1305 of RustCrypto.
    RustCrypto,
}

impl Backend {
    /// The backends of this build.
    pub const ALL: &'static [Self] = match Self::FEATURES {
        #[cfg(feature = "ipsec-mb")]
        [Self::IpsecMb, others @ ..] if !culvert_ipsec_mb::FOUND => others,
        all => all,
    };

    const FEATURES: &'static [Self] = &[
        #[cfg(feature = "ipsec-mb")]
        Self::IpsecMb,
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        #[cfg(feature = "ring")]
        Self::Ring,
        Self::RustCrypto,
    ];

    /// The name in settings and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb => "ipsec-mb",
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc-rs",
            #[cfg(feature = "ring")]
            Self::Ring => "ring",
            Self::RustCrypto => "rustcrypto",
        }
    }

    /// Why it does not work on this machine, if it does not.
    #[must_use]
    pub fn unfit(self) -> Option<&'static str> {
        match self {
            #[cfg(feature = "ipsec-mb")]
            Self::IpsecMb => culvert_ipsec_mb::unfit(),
            _ => None,
        }
    }

    /// Whether it has that cipher, on this machine.
    #[must_use]
    pub fn serves(self, algorithm: Algorithm) -> bool {
        match (self, algorithm) {
            #[cfg(feature = "ring")]
            (Self::Ring, Algorithm::Aes192Gcm) => false,
            _ => self.unfit().is_none(),
        }
    }

    /// The fastest on this machine.
    #[must_use]
    pub fn fastest(algorithm: Algorithm) -> Self {
        Self::ALL
            .iter()
            .copied()
            .filter(|backend| backend.serves(algorithm))
            .min_by_key(|backend| backend.rank(algorithm))
            .unwrap_or(Self::RustCrypto)
    }

    /// Its place in the order of speed, by `benches/aead.rs`; but ring comes last, as it leaves keys in memory that it frees.
    fn rank(self, algorithm: Algorithm) -> u8 {
        match (self, algorithm) {
            #[cfg(feature = "ipsec-mb")]
            (Self::IpsecMb, Algorithm::ChaCha20Poly1305) if !culvert_ipsec_mb::has_avx512() => 2,
            #[cfg(feature = "ipsec-mb")]
            (Self::IpsecMb, _) => 0,
            #[cfg(feature = "aws-lc")]
            (Self::AwsLc, _) => 1,
            (Self::RustCrypto, _) => 3,
            #[cfg(feature = "ring")]
            (Self::Ring, _) => 4,
        }
    }
}

/// Which backend serves which cipher: the one that is named, where it has the cipher, else the fastest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice(Option<Backend>);

impl Choice {
    /// What names the fastest of each cipher.
    pub const AUTO: &str = "auto";

    /// The backend for that cipher.
    #[must_use]
    pub fn backend(self, algorithm: Algorithm) -> Backend {
        self.0
            .filter(|backend| backend.serves(algorithm))
            .unwrap_or_else(|| Backend::fastest(algorithm))
    }

    /// The name of the backend for each cipher, by the cipher's name.
    #[must_use]
    pub fn names(self) -> BTreeMap<String, String> {
        let name = |algorithm: Algorithm| {
            let backend = self.backend(algorithm);
            (algorithm.name().to_owned(), backend.name().to_owned())
        };
        Algorithm::ALL.into_iter().map(name).collect()
    }
}

/// A name that chooses nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// Not in this build.
    #[error(
        "\"{name}\" is none of this build's AEAD backends: set one of auto{}",
        of_this_build()
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// Not on this machine.
    #[error("\"{name}\" does not work here: {why}; set \"auto\"")]
    Unfit {
        /// The name.
        name: String,
        /// Why not.
        why: &'static str,
    },
}

fn of_this_build() -> String {
    Backend::ALL
        .iter()
        .map(|backend| format!(", {}", backend.name()))
        .collect()
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(name: &str) -> Result<Self, ChoiceError> {
        if name == Self::AUTO {
            return Ok(Self::default());
        }
        let named = |backend: &&Backend| backend.name() == name;
        let name = name.to_owned();
        match Backend::ALL.iter().find(named) {
            None => Err(ChoiceError::Unknown { name }),
            Some(backend) => match backend.unfit() {
                Some(why) => Err(ChoiceError::Unfit { name, why }),
                None => Ok(Self(Some(*backend))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_taken_where_it_has_the_cipher() {
        for backend in Backend::ALL {
            let choice: Choice = backend.name().parse().unwrap();
            for algorithm in Algorithm::ALL {
                let chosen = choice.backend(algorithm);
                assert!(chosen.serves(algorithm));
                assert!(chosen == *backend || !backend.serves(algorithm));
            }
        }
    }

    #[test]
    fn the_fastest_is_taken_unless_one_is_named() {
        let choice: Choice = "auto".parse().unwrap();
        assert_eq!(choice, Choice::default());
        for algorithm in Algorithm::ALL {
            let chosen = choice.backend(algorithm);
            assert_eq!(chosen, Backend::fastest(algorithm));
            let portable = Backend::ALL == [Backend::RustCrypto];
            assert_eq!(chosen == Backend::RustCrypto, portable);
        }
    }

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let error = "rot13".parse::<Choice>().unwrap_err().to_string();
        assert!(
            error.contains("rot13") && error.contains("auto, "),
            "{error}"
        );
        assert!(error.ends_with("rustcrypto"), "{error}");
    }
}
