//! Certificates of the two hypervisors, made by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::netns::run;

/// Names of the hypervisors: in their certificates, as common name and as alternative one.
pub const NAMES: [&str; 2] = ["a.lab", "b.lab"];

/// The files of both, in one folder.
#[derive(Clone, Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes one for each side; each is its own authority, or there is a third.
    ///
    /// # Errors
    /// There is no openssl, or it fails.
    pub fn new(folder: &Path, authority: bool) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let this = Self {
            folder: folder.to_owned(),
        };
        if authority {
            this.request("ca", "basicConstraints=critical,CA:TRUE", &[])?;
        }
        for name in NAMES {
            let alternative = format!("subjectAltName=DNS:{name}");
            if authority {
                let ca =
                    [this.certificate("ca"), this.key("ca")].map(|path| path.display().to_string());
                this.request(name, &alternative, &["-CA", &ca[0], "-CAkey", &ca[1]])?;
            } else {
                this.request(name, &alternative, &[])?;
            }
        }
        Ok(this)
    }

    fn request(&self, name: &str, extension: &str, more: &[&str]) -> Result<()> {
        // The organisation is for ovs-monitor-ipsec, which finds a common name only if something else is behind it.
        let subject = format!("/O=Culvert/CN={name}");
        let mut command = Command::new("openssl");
        command
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
            ])
            .args(["-subj", &subject, "-addext", extension])
            .args(more)
            .arg("-keyout")
            .arg(self.key(name))
            .arg("-out")
            .arg(self.certificate(name));
        run(&mut command).map(drop)
    }

    /// The certificate of a name of [`NAMES`] or of `ca`.
    #[must_use]
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    /// The private key of the same.
    #[must_use]
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }
}
