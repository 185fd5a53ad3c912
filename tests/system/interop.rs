//! scapy as the other implementation of ESP: see `tests/interop`.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::lab::{HOST_PORT, Lab, Plan, SPIS, program};
use culvert_tests::load;
use culvert_tests::netns::{run, wait_for};
use culvert_tests::wire::Capture;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("scapy_agrees_on_captures", scapy_agrees_on_captures),
    ("scapy_agrees_on_the_wire", scapy_agrees_on_the_wire),
    (
        "what_is_forged_has_its_counter",
        what_is_forged_has_its_counter,
    ),
];

/// The Python that has scapy.
pub(crate) fn python() -> PathBuf {
    std::env::var_os("CULVERT_PYTHON").map_or_else(|| "python3".into(), PathBuf::from)
}

fn script(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "interop", name]
        .iter()
        .collect()
}

fn scapy_agrees_on_captures() -> Result<()> {
    let seed = std::env::var("CULVERT_SEED").unwrap_or_else(|_| std::process::id().to_string());
    let output = run(Command::new(python())
        .arg(script("captures.py"))
        .arg(program("culvert")?)
        .arg(&seed))
    .with_context(|| format!("CULVERT_SEED={seed}"))?;
    print!("{output}");
    Ok(())
}

/// The key of an SA, from the file that the lab has made.
fn key(lab: &Lab, spi: u32) -> Result<String> {
    let text = std::fs::read_to_string(lab.sides[0].folder.join("keymgr.toml"))?;
    let (_, rest) = text
        .split_once(&format!("spi = {spi:#x}"))
        .context("an SA")?;
    let (_, rest) = rest.split_once("key = \"").context("a key")?;
    Ok(rest.split('"').next().context("a key")?.to_owned())
}

fn scapy_agrees_on_the_wire() -> Result<()> {
    for cipher in Cipher::COMMON {
        for (esn, ipv6) in [(false, false), (true, false), (false, true), (true, true)] {
            let plan = Plan {
                ipv6,
                cipher,
                esn,
                ..Plan::default()
            };
            on_the_wire(plan).with_context(|| format!("{plan:?}"))?;
        }
    }
    Ok(())
}

fn on_the_wire(plan: Plan) -> Result<()> {
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let (cipher, esn) = (plan.cipher.name(), if plan.esn { "1" } else { "0" });

    // What a's stack sent, byte for byte, is what scapy gets out of the frames on the wire.
    let clear = Capture::at(&lab.home, &lab.sides[0].namespace, HOST_PORT, "out", 2000)?;
    let sealed = Capture::start(&lab.home, &lab.underlay, "a0", 2000)?;
    ensure!(load::ping(&lab, 5)?.received == 5);
    let files = [sealed.file().to_owned(), clear.file().to_owned()];
    let counts = [sealed.finish()?.len(), clear.finish()?.len()];
    ensure!(
        counts == [5, 5],
        "captured on the wire and at the host port: {counts:?}"
    );
    run(Command::new(python())
        .arg(script("wire.py"))
        .args([
            "decrypt",
            cipher,
            esn,
            &SPIS[0].to_string(),
            &key(&lab, SPIS[0])?,
        ])
        .args(files))?;

    // What scapy seals arrives behind b's tunnel device, once.
    let b = &lab.sides[1];
    let [outer_a, outer_b] = [lab.sides[0].outer, b.outer].map(|address| address.to_string());
    let mut receiver = b
        .namespace
        .command("python3")
        .arg("-c")
        .arg(format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('{}', 9999)); s.settimeout(10)\n\
             print('ready', flush=True)\n\
             print(s.recv(2000).decode(), flush=True)\n\
             s.settimeout(0.5)\n\
             try: print('again', s.recv(2000))\n\
             except TimeoutError: print('once')\n",
            b.inner
        ))
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut heard = BufReader::new(receiver.stdout.take().context("its output")?);
    let mut text = String::new();
    heard.read_line(&mut text)?;
    ensure!(text == "ready\n", "the receiver in b says: {text}");
    run(lab
        .underlay
        .command(python())
        .arg(script("wire.py"))
        .args([
            "inject",
            cipher,
            esn,
            &SPIS[0].to_string(),
            &key(&lab, SPIS[0])?,
        ])
        .args([outer_a.as_str(), outer_b.as_str(), "b0"]))?;
    heard.read_to_string(&mut text)?;
    receiver.wait()?;
    ensure!(text.contains("sealed by scapy\nonce"), "b received: {text}");
    let status = lab.sides[1].datapath_status()?;
    ensure!(
        status.drops["replayed"] == 1,
        "sent twice: {:?}",
        status.drops
    );
    ensure!(
        status.drops["authentication_failed"] == 1,
        "one forged: {:?}",
        status.drops
    );
    Ok(())
}

/// Each of scapy's forgeries is dropped under its own counter, and what does not authenticate moves no window.
fn what_is_forged_has_its_counter() -> Result<()> {
    // RFC 4303 [2.4-pad-inspected, 3.4.3-integrity-discarded, 3.4.3-moves-after, 3.4.3-window]
    let plan = Plan {
        esn: false,
        ..Plan::default()
    };
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let [from, to] = [0, 1].map(|side: usize| lab.sides[side].outer.to_string());
    let spi = SPIS[0].to_string();
    run(lab
        .underlay
        .command(python())
        .arg(script("wire.py"))
        .args(["forge", plan.cipher.name(), "0", &spi, &key(&lab, SPIS[0])?])
        .args([&from, &to, "b0"]))?;
    let seen = || -> Result<_> {
        let status = lab.sides[1].datapath_status()?;
        let drops: Vec<_> = status
            .drops
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .collect();
        let sa = status.sas.iter().find(|sa| sa.spi.get() == SPIS[0]);
        Ok((drops, sa.map(|sa| (sa.packets, sa.sequence))))
    };
    let drops = [
        ("authentication_failed", 2),
        ("bad_pad", 1),
        ("policy_mismatch", 1),
        ("replayed", 1),
        ("reserved_spi", 2),
        ("too_old", 1),
        ("truncated", 1),
    ];
    let wanted = (
        drops.map(|(name, count)| (name.to_owned(), count)).to_vec(),
        Some((1, 3002)),
    );
    let done = wait_for("the forgeries", Duration::from_secs(5), || {
        seen().is_ok_and(|seen| seen == wanted)
    });
    done.with_context(|| format!("dropped; packets and highest number: {:?}", seen()))
}
