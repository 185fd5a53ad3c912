//! Which strongSwan this is. No symbol says so; the daemon's executable has it in a text that it prints or logs.

/// The version of the daemon that this is loaded into.
pub(crate) fn running() -> Option<String> {
    // By its path, not as /proc/self/exe, so that it is charon's under valgrind, too.
    find(&std::fs::read(std::env::current_exe().ok()?).ok()?)
}

/// The version that an executable of strongSwan names: a whole text in charon-systemd, part of a line for the log in
/// charon. `None` if there is no version, or more than one.
fn find(executable: &[u8]) -> Option<String> {
    const BEFORE: &str = "(strongSwan ";
    let mut found: Option<&str> = None;
    let mut strongswan = false;
    for text in executable.split(|byte| *byte == 0) {
        let Ok(text) = std::str::from_utf8(text) else {
            continue;
        };
        strongswan |= text.contains("strongSwan");
        let part = text.split_once(BEFORE).map(|(_, rest)| rest);
        let version = match part.and_then(|rest| rest.split_once([',', ')'])) {
            Some((version, _)) => version,
            None => text,
        };
        if is_version(version) {
            if found.is_some_and(|other| other != version) {
                return None;
            }
            found = Some(version);
        }
    }
    found.filter(|_| strongswan).map(str::to_owned)
}

/// `5.9.8`, `6.0.0beta1`.
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let [major, minor, patch] = parts[..] else {
        return false;
    };
    digits(major)
        && digits(minor)
        && patch.starts_with(|first: char| first.is_ascii_digit())
        && patch.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executable(texts: &[&str]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\xff\xfe\0".to_vec();
        for text in texts {
            bytes.extend_from_slice(text.as_bytes());
            bytes.push(0);
        }
        bytes
    }

    #[test]
    fn the_version_is_found() {
        let status = "STATUS=charon-systemd running, strongSwan %s, %s %s, %s";
        let line = "Starting IKE charon daemon (strongSwan 5.9.8, %s %s, %s)";
        let compiler = "GCC: (Debian 12.2.0-14) 12.2.0";
        for (texts, version) in [
            (vec![status, "5.9.8", compiler], Some("5.9.8")),
            (vec!["5.9.8", "Linux strongSwan %s", line], Some("5.9.8")),
            (vec![line], Some("5.9.8")),
            (vec![status, "6.0.0beta1"], Some("6.0.0beta1")),
            (vec!["5.9.8", compiler], None),
            (vec![status, "GLIBC_2.2.5", "127.0.0.1", "5..8"], None),
            (vec![status, "5.9.8", "6.0.1"], None),
            (vec![], None),
        ] {
            assert_eq!(
                find(&executable(&texts)).as_deref(),
                version,
                "of {texts:?}"
            );
        }
    }
}
