//! What the kernel serves, or does not.

use super::*;
use culvert_proto::status::KernelSaStatus;

/// A tunnel of the key manager's, and its policy in the datapath.
fn tunnel(host: u8, place: Place, why: Option<&str>) -> (PolicyStatus, TunnelStatus) {
    let (policy, mut tunnel) = negotiated(host, Geneve::Either, Some(0x1001));
    tunnel.trap = false;
    tunnel.place = place;
    tunnel.why = why.map(str::to_owned);
    (policy, tunnel)
}

fn kernel_sa(spi: u32) -> KernelSaStatus {
    KernelSaStatus {
        direction: Direction::Out,
        spi: Spi::new(spi).unwrap(),
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        algorithm: "rfc4106(gcm(aes)) 256".to_owned(),
        packets: 12_345,
        bytes: 9_000,
        sequence: 12_399,
    }
}

/// The line of `text` that has `word` in it.
fn line<'a>(text: &'a str, word: &str) -> &'a str {
    let found = text.lines().find(|line| line.contains(word));
    found.unwrap_or_else(|| panic!("{word}:\n{text}"))
}

#[test]
fn who_serves_is_shown_and_what_fell_back_is_noticed() {
    let (mut datapath, mut keymgr) = (datapath(), keymgr());
    let down = "the datapath has no heartbeat";
    let mut tunnels = vec![
        tunnel(2, Place::Culvert, None),
        tunnel(3, Place::Kernel, Some(down)),
        tunnel(4, Place::Kernel, Some(down)),
        tunnel(5, Place::Kernel, Some("its mode")),
        tunnel(6, Place::Nobody, Some("the mode is culvert-only")),
    ];
    tunnels[3].1.mode = Mode::KernelOnly;
    tunnels[4].1.mode = Mode::CulvertOnly;
    (datapath.policies, keymgr.tunnels) = tunnels.into_iter().unzip();
    // What is with the kernel alone the datapath need not know.
    datapath.policies.remove(3);
    keymgr.kernel_sas = vec![kernel_sa(0x1001)];
    keymgr.handovers = Handovers {
        to_kernel: 2,
        to_culvert: 1,
        last_milliseconds: 41,
    };
    let report = Report::new(Ok(datapath), Ok(keymgr));
    let text = view::text(&report, false);
    assert!(line(&text, "192.0.2.2  ").contains("  culvert  "), "{text}");
    assert!(line(&text, "192.0.2.3  ").contains("kernel (the datapath has no heartbeat)"));
    let only = line(&text, "192.0.2.5  ");
    assert!(only.contains("kernel (its mode)  ") && only.contains("  kernel-only  "));
    assert!(line(&text, "192.0.2.6  ").contains("none (the mode is culvert-only; dropping)"));
    assert!(text.contains(
        "Fallback: kernel IPsec ready; the kernel has taken over 2 times, Culvert once, the last time within 41 ms\n"
    ));
    // An SA is where it is served, and once in the table.
    assert!(line(&text, "rfc4106").ends_with("alive  kernel"));
    assert_eq!(text.matches("0x00001001").count(), 1, "{text}");
    assert!(line(&text, "0x00002001").ends_with("  culvert"));
    // Protected is protected: only what is dropped is a problem.
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert!(report.problems[0].contains("192.0.2.6 is blocked: the mode is culvert-only"));
    assert_eq!(report.notices.len(), 1, "{:?}", report.notices);
    assert!(report.notices[0].contains("192.0.2.3 and 1 more is protected, but by the kernel"));
    assert!(line(&text, "and 1 more is protected").contains(down));
}

#[test]
fn without_a_datapath_the_key_manager_says_all() {
    let mut keymgr = keymgr();
    let why = "the datapath does not answer";
    keymgr.tunnels = vec![
        tunnel(2, Place::Kernel, Some(why)).1,
        tunnel(3, Place::Culvert, None).1,
    ];
    keymgr.kernel_sas = vec![kernel_sa(0x1001)];
    let report = Report::new(Err(down("culvert-datapath")), Ok(keymgr.clone()));
    let text = view::text(&report, false);
    assert!(line(&text, "192.0.2.2  ").contains("kernel (the datapath does not answer)"));
    assert!(line(&text, "192.0.2.3  ").contains("? (the datapath does not say)"));
    assert!(line(&text, "0x00001001").contains("kernel"));
    assert!(text.contains("Fallback: kernel IPsec ready\n"), "{text}");
    assert_eq!((report.problems.len(), report.notices.len()), (1, 1));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["notices"].as_array().unwrap().len(), 1);
    assert_eq!(json["keymgr"]["tunnels"][0]["place"], "kernel");

    keymgr.tunnels[1].place = Place::Nobody;
    keymgr.kernel_problem = Some("the kernel has no ESP".to_owned());
    let report = Report::new(Err(down("culvert-datapath")), Ok(keymgr));
    let text = view::text(&report, false);
    assert!(text.contains("Fallback: not available: the kernel has no ESP\n"));
    assert!(line(&text, "192.0.2.3  ").contains("none (dropping)"));
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
}

#[test]
fn drained_is_no_news() {
    let (mut datapath, mut keymgr) = (datapath(), keymgr());
    let (policy, tunnel) = tunnel(2, Place::Kernel, Some("drained"));
    (datapath.policies, keymgr.tunnels) = (vec![policy], vec![tunnel]);
    keymgr.drained = true;
    let report = Report::new(Ok(datapath), Ok(keymgr));
    assert_eq!((report.problems.len(), report.notices.len()), (0, 0));
    let text = view::text(&report, false);
    assert!(text.contains("drained: everything is with the kernel (culvert resume)"));
    assert!(!text.contains("MODE"), "{text}");
}

#[test]
fn who_serves_against_the_mode_is_a_problem() {
    let (mut datapath, mut keymgr) = (datapath(), keymgr());
    let mut tunnels = [
        tunnel(2, Place::Culvert, None),
        tunnel(3, Place::Kernel, None),
    ];
    tunnels[0].1.mode = Mode::KernelOnly;
    tunnels[1].1.mode = Mode::CulvertOnly;
    (datapath.policies, keymgr.tunnels) = tunnels.into_iter().unzip();
    let report = Report::new(Ok(datapath), Ok(keymgr));
    assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
    assert!(report.problems[0].contains("kernel-only, and its protection by culvert"));
}

#[test]
fn what_is_protected_beside_geneve_is_shown_if_it_is_little() {
    let mut keymgr = keymgr();
    keymgr.kernel_policies = vec!["192.0.2.1 to 192.0.2.2 tcp".to_owned()];
    let text = |keymgr: &KeymgrStatus, all| {
        view::text(&Report::new(Ok(datapath()), Ok(keymgr.clone())), all)
    };
    let heading = "Beside Geneve, by the kernel\n  192.0.2.1 to 192.0.2.2 tcp\n";
    assert!(text(&keymgr, false).contains(heading));
    keymgr.kernel_policies = vec!["192.0.2.1 to 192.0.2.2 tcp".to_owned(); 20];
    assert!(text(&keymgr, false).contains("by the kernel: 20 policies; --all"));
    assert_eq!(text(&keymgr, true).matches(" tcp\n").count(), 20);
}
