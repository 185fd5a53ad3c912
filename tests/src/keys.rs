//! Keys of the lab: the SAs of both directions, and the files of the key managers that have them.

use std::fmt::Write;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use culvert_proto::sa::Cipher;

/// One SA from a to b and one from b to a, as both sides have them until the next ones.
#[derive(Clone, Debug)]
pub struct Generation {
    /// SPIs from a to b and from b to a.
    pub spis: [u32; 2],
    /// Their keys and salts, as hex digits.
    pub keys: [String; 2],
    /// Their cipher.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// ESP in UDP, from 4500 to 4500.
    pub encapsulated: bool,
    /// More lines of each SA in the files, outbound and inbound.
    pub more: [&'static str; 2],
}

impl Generation {
    /// Fresh keys, with extended sequence numbers and without UDP encapsulation.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn new(cipher: Cipher, spis: [u32; 2]) -> Result<Self> {
        Ok(Self {
            spis,
            keys: [
                random_hex(cipher.keymat_length())?,
                random_hex(cipher.keymat_length())?,
            ],
            cipher,
            esn: true,
            encapsulated: false,
            more: [""; 2],
        })
    }
}

/// Fresh bytes, as hex digits.
///
/// # Errors
/// The kernel has none.
pub fn random_hex(length: usize) -> Result<String> {
    let mut bytes = vec![0; length];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The file of side `number`: it accepts under all `generations`, and sends under the one at `out`. The sides'
/// underlay addresses are `outer`.
///
/// # Errors
/// There is no generation at `out`.
pub fn keymgr_config(
    number: usize,
    outer: [IpAddr; 2],
    generations: &[&Generation],
    out: usize,
) -> Result<String> {
    let mut text = String::new();
    for generation in generations {
        for way in 0..2 {
            writeln!(
                text,
                "[[sa]]\ndirection = \"{}\"\nspi = {:#x}\nsource = \"{}\"\ndestination = \"{}\"\n\
                 cipher = \"{}\"\nkey = \"{}\"\nesn = {}",
                if way == number { "out" } else { "in" },
                generation.spis[way],
                outer[way],
                outer[1 - way],
                generation.cipher,
                generation.keys[way],
                generation.esn,
            )?;
            writeln!(text, "{}", generation.more[usize::from(way != number)])?;
            if generation.encapsulated {
                writeln!(
                    text,
                    "encapsulation = {{ source_port = 4500, destination_port = 4500 }}"
                )?;
            }
        }
    }
    let inbound: Vec<u32> = generations.iter().map(|one| one.spis[1 - number]).collect();
    writeln!(
        text,
        "[[policy]]\nlocal = \"{}\"\nremote = \"{}\"\nout = {:#x}\nin = {inbound:?}",
        outer[number],
        outer[1 - number],
        generations.get(out).context("no such generation")?.spis[number],
    )?;
    Ok(text)
}

/// Writes a file that only root can read.
///
/// # Errors
/// It cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let _ = std::fs::remove_file(path);
    let file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    std::io::Write::write_all(&mut file?, text.as_bytes())?;
    Ok(())
}
