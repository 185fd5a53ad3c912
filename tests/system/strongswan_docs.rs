//! The configurations of docs/strongswan, as they stand there, but for the names of certificates: they work.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use culvert_tests::certificates::NAMES;
use culvert_tests::charon::Kind;
use culvert_tests::hypervisor::{World, fetch, plugin};
use culvert_tests::ike::{Auth, Connection};
use culvert_tests::lab::{Lab, Plan, culvert};
use culvert_tests::negotiated::{LIMIT, Negotiated};
use culvert_tests::netns::wait_for;

use crate::strongswan::flows;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("strongswan_documented_psk", || {
        documented("psk.conf", Auth::Psk)
    }),
    ("strongswan_documented_self_signed", || {
        documented("self-signed.conf", Auth::SelfSigned)
    }),
    ("strongswan_documented_ca", || {
        documented("ca.conf", Auth::Ca)
    }),
    ("strongswan_documented_ipsec_conf", documented_ipsec_conf),
];

/// Those that take another strongSwan.
pub(crate) const OTHER_VERSION: &[(&str, crate::Test)] = &[(
    "strongswan_of_another_version_is_refused",
    another_version_is_refused,
)];

/// Another suite of Debian, whose strongSwan the plugin does not know.
const SUITE: &str = "trixie";

/// Why it is not to be had, if so. Fetches it.
pub(crate) fn other_version_missing() -> Option<String> {
    fetch(Some(SUITE)).err()?.lacking()
}

/// A configuration as side `number` has it: that of the page is 192.0.2.1's, "on 192.0.2.2 the addresses are exchanged".
fn of_side(name: &str, number: usize) -> Result<String> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../docs/strongswan", name]
        .iter()
        .collect();
    let mut text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let own = ["192.0.2.1", "192.0.2.2"];
    if number == 1 {
        text = text
            .replace(own[0], "OTHER")
            .replace(own[1], own[0])
            .replace("OTHER", own[1]);
    }
    for (host, name) in [("1", NAMES[number]), ("2", NAMES[1 - number])] {
        text = text
            .replace(
                &format!("id = hypervisor-{host}\n"),
                &format!("id = {name}\n"),
            )
            .replace(&format!("hypervisor-{host}.pem"), &format!("{name}.pem"));
    }
    Ok(text)
}

fn documented(name: &str, auth: Auth) -> Result<()> {
    let connection = Connection {
        auth,
        ..Connection::default()
    };
    let net = Negotiated::new(Plan::default(), Kind::Systemd, &connection, &[])?;
    for number in 0..2 {
        let text = of_side(name, number)?;
        net.worlds[number].write("/etc/swanctl/conf.d/lab.conf", &text)?;
    }
    works(net)
}

fn documented_ipsec_conf() -> Result<()> {
    let connection = Connection::default();
    let net = Negotiated::new(Plan::default(), Kind::Starter, &connection, &[])?;
    for number in 0..2 {
        let text = of_side("ipsec.conf", number)?;
        net.worlds[number].write("/etc/ipsec.conf", &text)?;
    }
    works(net)
}

fn works(mut net: Negotiated) -> Result<()> {
    net.start_all()?;
    net.first_packet()?;
    flows(&net)
}

/// charon says so and goes on with the kernel's IPsec, and the status says so, too.
fn another_version_is_refused() -> Result<()> {
    use culvert_tests::charon::Charon;
    let mut lab = Lab::new(Plan::default())?;
    let world = World::new(&lab, 0, &fetch(Some(SUITE))?, Some(&plugin()?))?;
    lab.start_datapath(0)?;
    lab.start_keymgr_without_keys(0)?;
    lab.wait_for_protection(0)?;
    let mut charon = Charon::new(&world, 0, Kind::Systemd, &[])?;
    // Where its settings are is not known of that version, so the plugin looks at the usual place.
    let bridge = charon.bridge();
    world.within(|| Ok(std::os::unix::fs::symlink(bridge, "/run/charon.culvert")?))?;
    charon.start(&lab.home)?;
    let text = std::fs::read_to_string(charon.log())?;
    ensure!(
        text.contains("kernel-culvert is not loaded into strongSwan 6.")
            && text.contains("kernel IPsec is in its place"),
        "{text}"
    );
    let side = &lab.sides[0];
    let status = || -> Result<String> {
        let output = culvert(side, &["status"])?.output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    wait_for("the status to say so", LIMIT, || {
        status().is_ok_and(|text| text.contains("strongSwan 6."))
    })
    .with_context(|| status().unwrap_or_default())?;
    charon.stop()
}
