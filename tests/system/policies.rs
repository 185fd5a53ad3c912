//! Which Geneve is protected, which goes in clear and which not at all: the SPD on real packets.

use std::fmt::Write;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use culvert_tests::keys::write_private;
use culvert_tests::lab::{Lab, Plan, culvert};
use culvert_tests::load;
use culvert_tests::netns::run;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "only_some_networks_are_protected",
        only_some_networks_are_protected,
    ),
    (
        "only_some_hypervisors_are_protected",
        only_some_hypervisors_are_protected,
    ),
    (
        "a_start_with_wider_policies_leaks_nothing",
        a_start_with_wider_policies_leaks_nothing,
    ),
];

/// Puts `before` in front of a side's policies, and `behind` after them.
fn add_policies(lab: &Lab, number: usize, before: &str, behind: &str) -> Result<()> {
    let path = lab.sides[number].folder.join("keymgr.toml");
    let text = std::fs::read_to_string(&path)?;
    let (sas, policies) = text.split_once("[[policy]]").context("a policy")?;
    let mut changed = sas.to_owned();
    write!(changed, "{before}\n[[policy]]{policies}\n{behind}")?;
    write_private(&path, &changed)?;
    run(&mut culvert(&lab.sides[number], &["reload"])?).map(drop)
}

/// Sends Geneve of each VNI from a to b: from port 6081, to one that nobody but this test has, so that it is heard.
/// Returns the VNIs that b heard.
fn heard(lab: &Lab, vnis: &[u32]) -> Result<Vec<u32>> {
    let [a, b] = &lab.sides;
    let receive = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.bind(('{}', 7777)); s.settimeout(1)\n\
         print('ready', flush=True)\n\
         while True:\n    \
             try: print(int.from_bytes(s.recv(100)[4:7], 'big'), flush=True)\n    \
             except TimeoutError: break\n",
        b.outer
    );
    let mut receiver = b
        .namespace
        .command("python3")
        .args(["-c", &receive])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(receiver.stdout.take().context("its output")?);
    let mut text = String::new();
    said.read_line(&mut text)?;
    let send = format!(
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)\n\
         for vni in {vnis:?}:\n    \
             geneve = bytes([0, 0, 0x65, 0x58]) + vni.to_bytes(3, 'big') + bytes(21)\n    \
             s.sendto(bytes.fromhex('17c11e6100240000') + geneve, ('{}', 0))\n",
        b.outer
    );
    run(a.namespace.command("python3").args(["-c", &send]))?;
    text.clear();
    said.read_to_string(&mut text)?;
    receiver.wait()?;
    text.lines().map(|line| Ok(line.parse()?)).collect()
}

fn only_some_networks_are_protected() -> Result<()> {
    let mut lab = Lab::new(Plan::default())?;
    lab.start_culvert()?;
    let outer = [lab.sides[0].outer, lab.sides[1].outer];
    for number in 0..2 {
        let (local, remote) = (outer[number], outer[1 - number]);
        let policy = |vni: &str, action: &str| {
            format!(
                "[[policy]]\nlocal = \"{local}\"\nremote = \"{remote}\"\nvni = {vni}\naction = \"{action}\"\n"
            )
        };
        let before = policy("[1000, \"2000-2999\"]", "bypass") + &policy("[666]", "discard");
        add_policies(&lab, number, &before, "")?;
    }
    take_counts(&lab.underlay)?;
    let vnis = heard(&lab, &[77, 666, 999, 1000, 1001, 2500, 3000])?;
    ensure!(vnis == [77, 999, 1000, 1001, 2500, 3000], "heard: {vnis:?}");
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        (counts.esp.packets, counts.plaintext_geneve.packets) == (4, 2),
        "{counts:?}"
    );
    let (a, b) = (
        lab.sides[0].datapath_status()?,
        lab.sides[1].datapath_status()?,
    );
    ensure!(a.drops["policy_discard"] == 1, "{:?}", a.drops);
    ensure!(a.workers[0].bypassed == 2 && b.workers[0].bypassed == 2);
    let text = run(&mut culvert(&lab.sides[0], &["status"])?)?;
    ensure!(text.contains("VNI 1000,2000-2999"), "{text}");

    // b no longer lets VNI 1000 in, in clear.
    let path = lab.sides[1].folder.join("keymgr.toml");
    let text = std::fs::read_to_string(&path)?.replace("[1000, ", "[");
    write_private(&path, &text)?;
    run(&mut culvert(&lab.sides[1], &["reload"])?)?;
    let vnis = heard(&lab, &[1000, 2500])?;
    ensure!(vnis == [2500], "heard: {vnis:?}");
    let drops = lab.sides[1].datapath_status()?.drops;
    ensure!(drops["plaintext_from_peer"] == 1, "{drops:?}");

    // All of it goes in clear only while the workers look at it.
    lab.kill_datapath(1)?;
    ensure!(heard(&lab, &[2500])?.is_empty());
    Ok(())
}

/// All of the network must be protected but one host: what has no SA is blocked, the exception is in clear.
fn only_some_hypervisors_are_protected() -> Result<()> {
    let mut lab = Lab::new(Plan::default())?;
    lab.start_culvert()?;
    let umbrella = "[[policy]]\nlocal = \"192.0.2.0/24\"\nremote = \"192.0.2.0/24\"\n";
    add_policies(&lab, 0, "", umbrella)?;
    // The tunnel to b goes on, under the policy before it.
    ensure!(load::ping(&lab, 20)?.received == 20);
    let a = &lab.sides[0];
    for host in [8, 9] {
        let mac = "02:00:00:00:09:09";
        a.namespace
            .ip(&format!("neigh add 192.0.2.{host} lladdr {mac} dev wire0"))?;
    }
    let send = |host: u8| {
        let script = format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             for _ in range(3): s.sendto(bytes(60), ('192.0.2.{host}', 6081))\n"
        );
        run(a.namespace.command("python3").args(["-c", &script])).map(drop)
    };
    take_counts(&lab.underlay)?;
    send(9)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    ensure!(a.datapath_status()?.drops["no_sa"] == 3);
    let exception =
        "[[policy]]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.8\"\naction = \"bypass\"\n";
    add_policies(&lab, 0, exception, "")?;
    send(8)?;
    send(9)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 3, "{counts:?}");
    Ok(())
}

/// The policies that a datapath finds in force when it starts, and those that it is given, guard the same peer in
/// different ways: by its address, and by a prefix. At no moment by none.
fn a_start_with_wider_policies_leaks_nothing() -> Result<()> {
    let mut lab = Lab::new(Plan::default())?;
    lab.start_culvert()?;
    // So many peers that to change from one to the other takes its time.
    let mut others = String::new();
    for number in 0..4000 {
        writeln!(
            others,
            "[[policy]]\nlocal = \"192.0.2.1\"\nremote = \"198.18.{}.{}\"",
            number / 250,
            number % 250 + 1
        )?;
    }
    add_policies(&lab, 0, "", &others)?;
    lab.kill_datapath(0)?;
    lab.kill_keymgr(0)?;
    let path = lab.sides[0].folder.join("keymgr.toml");
    let wide = "[[policy]]\nlocal = \"192.0.2.1\"\nremote = \"192.0.2.0/24\"\n";
    write_private(&path, wide)?;
    take_counts(&lab.underlay)?;
    let flood = "import socket, time\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        until = time.time() + 6\n\
        while time.time() < until:\n    \
            try: s.sendto(bytes(60), ('192.0.2.2', 6081))\n    \
            except OSError: pass\n";
    let mut flood = lab.sides[0]
        .namespace
        .command("python3")
        .args(["-c", flood])
        .spawn()?;
    let started = lab
        .start_keymgr(0)
        .and_then(|()| lab.start_datapath(0))
        .and_then(|()| lab.wait_for_protection(0));
    flood.wait()?;
    started?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    ensure!(lab.sides[0].datapath_status()?.drops["no_sa"] > 0);
    Ok(())
}
