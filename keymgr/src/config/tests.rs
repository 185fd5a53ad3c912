use super::*;

/// A good file, of which tests spoil a part.
const GOOD: &str = r#"
[[sa]]
direction = "out"
spi = 0x1001
source = "192.0.2.1"
destination = "192.0.2.2"
cipher = "aes128gcm16"
key = "000102030405060708090a0b0c0d0e0f10111213"

[[sa]]
direction = "in"
spi = 0x2001
source = "192.0.2.2"
destination = "192.0.2.1"
cipher = "aes128gcm16"
key = "ff0102030405060708090a0b0c0d0e0f10111213"
esn = false
replay_window = 64

[[policy]]
local = "192.0.2.1"
remote = "192.0.2.2"
out = 0x1001
in = [0x2001]
"#;

fn check(text: &str) -> Result<Config, Problems> {
    parse(text, Path::new("test.toml")).map(|(config, _)| config)
}

#[test]
fn a_good_file_is_taken() {
    // RFC 4303 [2-version, 3.4.3-window-fast]
    let config = check(GOOD).unwrap();
    assert_eq!((config.sas.len(), config.policies.len()), (2, 1));
    assert!(config.sas[0].esn && !config.sas[1].esn);
    assert_eq!(config.sas[0].replay_window, 1024);
    assert!(check("").unwrap().sas.is_empty());
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    // RFC 4303 [2.1-no-spi-zero, A2-width]: SPIs and windows have bounds.
    // RFC 4303 [3.2-one-service, 3.2-not-both-null, 5-not-both-null]: other ciphers than ours there are not.
    let cases = [
        (
            "10111213\"\nesn",
            "101112\"\nesn",
            10,
            "key of 19 bytes; aes128gcm16 takes 20",
        ),
        (
            "cipher = \"aes128gcm16\"\nkey = \"00",
            "cipher = \"aes512\"\nkey = \"00",
            2,
            "aes128gcm16, aes192gcm16, aes256gcm16, chacha20poly1305",
        ),
        ("spi = 0x2001", "spi = 255", 10, "reserved"),
        (
            "replay_window = 64",
            "replay_window = 5000",
            10,
            "from 32 to 4096",
        ),
        (
            "replay_window = 64",
            "replay_window = 31",
            10,
            "from 32 to 4096",
        ),
        (
            "source = \"192.0.2.2\"",
            "source = \"2001:db8::2\"",
            10,
            "different IP versions",
        ),
        (
            "remote = \"192.0.2.2\"",
            "remote = \"2001:db8::2\"",
            20,
            "different IP versions",
        ),
        (
            "destination = \"192.0.2.2\"",
            "destination = \"224.0.0.1\"",
            2,
            "no address of a host",
        ),
        (
            "key = \"ff01",
            "key = \"0001",
            10,
            "the same key as the SA in line 2",
        ),
        (
            "in = [0x2001]",
            "in = [0x2002]",
            20,
            "there is no SA 0x00002002",
        ),
        (
            "in = [0x2001]",
            "in = [0x1001]",
            20,
            "but the one in line 2 is out",
        ),
        (
            "key = \"ff01",
            "key = \"gg01",
            10,
            "character 1 is no hex digit",
        ),
        (
            "key = \"ff",
            "key_file = \"x\"\nkey = \"ff",
            10,
            "either key or key_file",
        ),
        ("esn = false", "esm = false", 17, "esm"),
        (
            "out = 0x1001",
            "out = \"x\"",
            23,
            "policy 192.0.2.1 to 192.0.2.2: an SPI is a number",
        ),
        (
            "spi = 0x2001",
            "spi = 0x100000000",
            12,
            "SA in: an SPI is a number",
        ),
        (
            "source = \"192.0.2.2\"",
            "source = \"192.0.2.300\"",
            13,
            "SA 0x2001 in: \"192.0.2.300\" is no IPv4",
        ),
        (
            "source = \"192.0.2.2\"",
            "source = \"::ffff:192.0.2.2\"",
            10,
            "write 192.0.2.2",
        ),
        (
            "direction = \"in\"",
            "direction = \"inn\"",
            11,
            "SA 0x2001: unknown variant",
        ),
        ("[[policy]]", "[policy]", 20, "[[policy]]"),
        ("[[policy]]", "[[polisy]]", 20, "\"polisy\" is not known"),
        ("in = [0x2001]", "in = [0x2001", 24, "array"),
    ];
    for (from, to, line, wanted) in cases {
        assert_eq!(GOOD.matches(from).count(), 1, "{from}");
        let problems = check(&GOOD.replace(from, to)).unwrap_err();
        assert!(
            problems
                .list
                .iter()
                .any(|p| p.text.contains(wanted) && p.line == line),
            "{to}: {problems}"
        );
        assert!(
            problems
                .to_string()
                .contains(&format!("test.toml:{line}: ")),
            "{problems}"
        );
        assert!(
            !problems.to_string().contains("030405"),
            "a key is shown: {problems}"
        );
    }
}

#[test]
fn what_an_sa_may_have_more_is_taken_or_named() {
    let with = |more: &str| check(&GOOD.replace("esn = false", more));
    let out = |more: &str| {
        check(&GOOD.replace(
            "direction = \"out\"",
            &format!("direction = \"out\"\n{more}"),
        ))
    };
    let lives =
        with("soft = { bytes = 10, seconds = 5 }\nhard = { bytes = 20, packets = 7 }").unwrap();
    let lifetime = lives.sas[1].lifetime;
    assert_eq!(
        (lifetime.soft.bytes, lifetime.hard.packets),
        (Some(10), Some(7))
    );
    assert_eq!(
        (lifetime.soft.seconds, lifetime.hard.seconds),
        (Some(5), None)
    );
    assert_eq!(out("tfc = 1400").unwrap().sas[0].tfc, 1400);
    let encapsulation = "encapsulation = { source_port = 4500, destination_port = 4501 }";
    let keepalive =
        |config: Config, sa: usize| config.sas[sa].encapsulation.map(|ports| ports.keepalive);
    assert_eq!(keepalive(out(encapsulation).unwrap(), 0), Some(20));
    assert_eq!(
        keepalive(with(encapsulation).unwrap(), 1),
        Some(0),
        "it only receives"
    );
    for (more, wanted) in [
        ("soft.bytes = 20\nhard.bytes = 20", "must be the smaller"),
        ("hard.packets = 0", "a limit of 0 packets"),
        ("hard.days = 1", "unknown field `days`"),
        ("tfc = 1400", "set it on the outbound SA"),
        (
            "encapsulation = { source_port = 0, destination_port = 4500 }",
            "port 0",
        ),
        (
            "encapsulation = { source_port = 500, destination_port = 501 }",
            "must be 4500",
        ),
        (
            "encapsulation = { source_port = 6081, destination_port = 4500 }",
            "6081 is Geneve's",
        ),
    ] {
        let problems = with(more).unwrap_err().to_string();
        assert!(problems.contains(wanted), "{more}: {problems}");
    }
}

#[test]
fn policies_have_prefixes_networks_and_actions() {
    let first = |text: &str| {
        check(&GOOD.replace("[[policy]]", &format!("[[policy]]\n{text}\n\n[[policy]]")))
    };
    let config = first(
        "local = \"192.0.2.0/24\"\nremote = \"0.0.0.0/0\"\nvni = [7, \"100-199\", 8, \"150-250\"]\n\
         geneve_port = \"remote\"\naction = \"bypass\"",
    )
    .unwrap();
    let [bypass, protect] = &config.policies[..] else {
        panic!("{config:?}")
    };
    assert_eq!(
        bypass.selector.to_string(),
        "192.0.2.0/24 to 0.0.0.0/0 remote port 6081 vni 7-8,100-250"
    );
    assert_eq!((bypass.order, protect.order), (0, 1));
    assert_eq!(bypass.action, Action::Bypass);
    for (text, wanted) in [
        (
            "local = \"192.0.2.1/24\"\nremote = \"192.0.2.9\"",
            "write 192.0.2.0/24",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9/33\"",
            "no IPv4 or IPv6 address or prefix",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"::/0\"",
            "different IP versions",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9\"\nvni = [16777216]",
            "from 0 to 16777215",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9\"\nvni = [\"9-1\"]",
            "no range of VNIs",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9\"\nvni = [true]",
            "VNIs are numbers",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9\"\naction = \"allow\"",
            "unknown variant `allow`",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nvni = [1]\naction = \"discard\"\nout = 0x1001",
            "it does not protect",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nvni = [1]\nin = [0x2001, 0x2001]",
            "named twice",
        ),
        (
            "local = \"192.0.2.1\"\nremote = \"192.0.2.9\"\nout = 0x1001",
            "needs SA 0x00001001 out from",
        ),
    ] {
        let problems = first(text).unwrap_err().to_string();
        assert!(problems.contains(wanted), "{text}: {problems}");
    }
    // Two policies may share an SA: each has some of the networks.
    let shared = first(
        "local = \"192.0.2.1\"\nremote = \"192.0.2.2\"\nvni = [1]\nout = 0x1001\nin = [0x2001]",
    );
    assert_eq!(shared.unwrap().policies.len(), 2);
}

#[test]
fn modes_are_of_policies_then_of_peers_then_of_all() {
    let file = GOOD.to_owned()
        + r#"mode = "culvert-only"

[fallback]
mode = "kernel-only"
hung_after = 250

[[fallback.peer]]
remote = "198.51.100.0/24"
mode = "culvert-only"

[[fallback.peer]]
remote = "198.51.100.7"
mode = "prefer-culvert"
"#;
    let config = check(&file).unwrap();
    let selector = &config.policies[0].selector;
    assert_eq!(config.modes, [(selector.clone(), Mode::CulvertOnly)].into());
    assert_eq!(config.fallback.hung_after.as_millis(), 250);
    for (remote, mode) in [
        ("198.51.100.7/32", Mode::PreferCulvert),
        ("198.51.100.8/32", Mode::CulvertOnly),
        ("198.51.100.0/24", Mode::CulvertOnly),
        // Not all of it is within.
        ("198.51.0.0/16", Mode::KernelOnly),
        ("2001:db8::1/128", Mode::KernelOnly),
    ] {
        let remote = remote.parse().unwrap();
        assert_eq!(config.fallback.mode_for(&remote), mode, "{remote}");
    }

    let none = check(GOOD).unwrap();
    assert!(none.modes.is_empty());
    assert_eq!(none.fallback, Fallback::default());
    assert_eq!(none.fallback.mode, Mode::PreferCulvert);
    assert_eq!(none.fallback.hung_after.as_millis(), 100);
    let peer = "[[fallback.peer]]\nremote = \"2001:db8::/64\"\nmode = \"kernel-only\"\n";
    assert_eq!(check(peer).unwrap().fallback.peers.len(), 1);
}

#[test]
fn what_is_wrong_with_the_fallback_is_named_with_its_line() {
    let peer = |remote: &str| {
        format!("[[fallback.peer]]\nremote = \"{remote}\"\nmode = \"kernel-only\"\n")
    };
    for (text, line, wanted) in [
        ("\n[fallback]\nmode = \"kernel\"\n".to_owned(), 3, "unknown variant `kernel`"),
        ("[fallback]\nhung = 7\n".to_owned(), 2, "unknown field `hung`"),
        ("[fallback]\nhung_after = 49\n".to_owned(), 1, "from 50 to 60000"),
        ("[fallback]\nhung_after = 60001\n".to_owned(), 1, "from 50 to 60000"),
        ("[fallback]\nhung_after = \"1s\"\n".to_owned(), 2, "fallback: invalid type"),
        ("[[fallback]]\n".to_owned(), 1, "write [fallback]"),
        ("fallback = 5\n".to_owned(), 1, "write [fallback]"),
        ("[fallback.peer]\n".to_owned(), 1, "write [[fallback.peer]]"),
        (peer("192.0.2.1/24"), 1, "write 192.0.2.0/24"),
        (peer("192.0.2.1/33"), 2, "no IPv4 or IPv6 address or prefix"),
        (peer("224.0.0.1"), 1, "no address of a host"),
        (peer("::ffff:192.0.2.2"), 1, "write 192.0.2.2"),
        (peer("192.0.2.2") + "mood = 1\n", 4, "fallback.peer 192.0.2.2: unknown field `mood`"),
        (peer("192.0.2.2") + "\n" + &peer("192.0.2.2/32"), 5, "the peer in line 1"),
        ("[[fallback.peer]]\nremote = \"192.0.2.2\"\n".to_owned(), 1, "missing field `mode`"),
        (
            "[[policy]]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\naction = \"bypass\"\nmode = \"kernel-only\"\n".to_owned(),
            1,
            "leave mode away",
        ),
        ("[fall]\n".to_owned(), 1, "[[sa]], [[policy]] and [fallback]"),
    ] {
        let problems = check(&text).unwrap_err();
        let found = |p: &Problem| p.text.contains(wanted) && p.line == line;
        assert!(problems.list.iter().any(found), "{text}: {problems}");
    }
    // One that is wrong does not hide the others.
    let text = format!(
        "[fallback]\nmode = 1\n{}{}",
        peer("x"),
        peer("192.0.2.1/24")
    );
    assert_eq!(check(&text).unwrap_err().list.len(), 3);
}

#[test]
fn duplicates_are_refused() {
    let twice = GOOD.replace("[[policy]]", "[[sa]]\ndirection = \"in\"\nspi = 0x2001\nsource = \"192.0.2.9\"\ndestination = \"192.0.2.1\"\ncipher = \"aes128gcm16\"\nkey = \"aa0102030405060708090a0b0c0d0e0f10111213\"\n\n[[policy]]");
    let problems = check(&twice).unwrap_err();
    assert_eq!(problems.list.len(), 1, "{problems}");
    assert!(
        problems.list[0].text.contains("used by the SA in line 10"),
        "{problems}"
    );
    let policies = format!("{GOOD}\n[[policy]]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.2\"\n");
    assert!(
        check(&policies)
            .unwrap_err()
            .to_string()
            .contains("the same selector")
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let bad = GOOD
        .replace("spi = 0x2001", "spi = 3")
        .replace("replay_window = 64", "replay_window = 9000")
        .replace("aes128gcm16\"\nkey = \"00", "rot13\"\nkey = \"00");
    assert!(check(&bad).unwrap_err().list.len() >= 3);
}

#[test]
fn problems_of_form_do_not_hide_others_nor_cause_more() {
    let bad = GOOD
        .replace("spi = 0x1001", "spi = 0x1001\nspy = 7")
        .replace("source = \"192.0.2.2\"", "source = \"x\"")
        .replace("remote = \"192.0.2.2\"", "remote = 5");
    let problems = check(&bad).unwrap_err();
    let lines: Vec<_> = problems.list.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [5, 14, 23], "{problems}");

    let bad = GOOD.replace("cipher = \"aes128gcm16\"", "cipher = \"x\"");
    let problems = check(&bad).unwrap_err();
    assert_eq!(problems.list.len(), 2, "not the policy's fault: {problems}");
}

#[test]
fn a_file_with_keys_must_be_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keymgr.toml");
    std::fs::write(&path, GOOD).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let problems = load(&path).unwrap_err();
    assert!(problems.to_string().contains("chmod 0600"), "{problems}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(load(&path).unwrap().sas.len(), 2);
    assert!(
        load(&directory.path().join("none"))
            .unwrap_err()
            .to_string()
            .contains("cannot be read")
    );
}
