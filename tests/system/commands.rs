//! What people run: the demo, and the daemons with good and bad input.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::keys::write_private;
use culvert_tests::lab::{Lab, Plan, culvert, program};
use culvert_tests::load;
use culvert_tests::netns::{ROOT, ip, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "demo_gives_json_and_leaves_nothing",
        demo_gives_json_and_leaves_nothing,
    ),
    ("demo_over_ipv6", demo_over_ipv6),
    ("two_demos_at_once", two_demos_at_once),
    (
        "demo_interrupted_leaves_nothing",
        demo_interrupted_leaves_nothing,
    ),
    (
        "demo_killed_is_cleaned_by_the_next",
        demo_killed_is_cleaned_by_the_next,
    ),
    ("idle_datapath_takes_no_cpu", idle_datapath_takes_no_cpu),
    (
        "bad_config_is_refused_and_what_ran_goes_on",
        bad_config_is_refused_and_what_ran_goes_on,
    ),
    ("daemons_run_once_and_as_root", daemons_run_once_and_as_root),
    ("status_and_reload", status_and_reload),
];

fn demo(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(program("culvert-demo")?);
    command
        .args(["--seconds", "2"])
        .args(arguments)
        .stdin(Stdio::null());
    Ok(command)
}

fn check_report(text: &[u8]) -> Result<()> {
    let report: serde_json::Value = serde_json::from_slice(text).context("the demo's JSON")?;
    let number = |path: &str| {
        report
            .pointer(path)
            .and_then(serde_json::Value::as_f64)
            .with_context(|| format!("no number at {path} in {report}"))
    };
    ensure!(number("/plain/gbit_per_s")? > 0.0);
    ensure!(number("/sealed/gbit_per_s")? > 0.0);
    ensure!(number("/ping/loss_percent")? == 0.0, "{report}");
    ensure!(number("/wire/esp_packets")? > 1000.0, "{report}");
    ensure!(number("/wire/plaintext_geneve_packets")? == 0.0, "{report}");
    number("/wire/other_packets")?;
    let drops = report["drops"].as_object().context("drops")?;
    ensure!(drops.len() > 20, "every reason is there");
    Ok(())
}

/// What a demo of process `pid` has left.
fn left_by(pid: u32) -> Result<Vec<String>> {
    let id = format!("cv{pid}x");
    let mut left: Vec<String> = ip("netns list")?
        .lines()
        .filter(|line| line.starts_with(&id))
        .map(str::to_owned)
        .collect();
    for entry in std::fs::read_dir(ROOT)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&id) {
            left.push(name);
        }
    }
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path().join("cmdline");
        let line = std::fs::read(path).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&format!("/{id}")) {
            left.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    Ok(left)
}

fn demo_gives_json_and_leaves_nothing() -> Result<()> {
    let child = demo(&["--json"])?
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    ensure!(output.status.success());
    check_report(&output.stdout)?;
    let left = left_by(pid)?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn demo_over_ipv6() -> Result<()> {
    let output = demo(&["--json", "--ipv6", "--cipher", "chacha20poly1305"])?.output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    check_report(&output.stdout)
}

fn two_demos_at_once() -> Result<()> {
    let start = || {
        demo(&["--json"])?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("demo")
    };
    let (one, two) = (start()?, start()?);
    for child in [one, two] {
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        check_report(&output.stdout)?;
    }
    Ok(())
}

/// A demo that was interrupted while Culvert and iperf3 ran.
struct Interrupted {
    demo: u32,
    /// All that ran in a's namespace; the load shows nothing of the lab in its command line.
    in_a: Vec<String>,
}

impl Interrupted {
    fn by(signal: Signal) -> Result<Self> {
        let mut child = Command::new(program("culvert-demo")?)
            .args(["--seconds", "20"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let demo = child.id();
        let socket = std::path::PathBuf::from(format!("{ROOT}/cv{demo}x0/b/keymgr.sock"));
        wait_for("the demo to run", Duration::from_secs(60), || {
            socket.exists()
        })?;
        // ping takes a second, then iperf3 runs.
        std::thread::sleep(Duration::from_secs(3));
        let pids = ip(&format!("netns pids cv{demo}x0-a"))?;
        let in_a: Vec<String> = pids.split_whitespace().map(str::to_owned).collect();
        kill(Pid::from_raw(demo.cast_signed()), signal)?;
        child.wait()?;
        ensure!(
            in_a.len() >= 3,
            "two daemons and a load run in a, not {in_a:?}"
        );
        Ok(Self { demo, in_a })
    }

    fn left(&self) -> Result<Vec<String>> {
        let mut left = left_by(self.demo)?;
        for pid in &self.in_a {
            if let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                && !line.is_empty()
            {
                left.push(line.replace('\0', " "));
            }
        }
        Ok(left)
    }
}

fn demo_interrupted_leaves_nothing() -> Result<()> {
    let left = Interrupted::by(Signal::SIGINT)?.left()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn demo_killed_is_cleaned_by_the_next() -> Result<()> {
    let demo = Interrupted::by(Signal::SIGKILL)?;
    ensure!(!demo.left()?.is_empty(), "a killed demo cannot clean up");
    drop(Lab::new(Plan::default())?);
    let left = demo.left()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn started(plan: Plan) -> Result<Lab> {
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    Ok(lab)
}

/// CPU time of a process in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

fn idle_datapath_takes_no_cpu() -> Result<()> {
    let lab = started(Plan::default())?;
    load::ping(&lab, 20)?;
    let pid = lab.sides[0].datapath_pid().context("a datapath")?;
    let before = cpu_ticks(pid)?;
    std::thread::sleep(Duration::from_secs(4));
    let ticks = cpu_ticks(pid)? - before;
    ensure!(ticks < 12, "{} ms of CPU in 4 s, more than 3 %", ticks * 10);
    Ok(())
}

fn bad_config_is_refused_and_what_ran_goes_on() -> Result<()> {
    let mut lab = started(Plan::default())?;
    let config = lab.sides[0].folder.join("keymgr.toml");
    let good = std::fs::read_to_string(&config)?;
    let cases = [
        ("key = \"", "key = \"00", "takes 36"),
        (
            "cipher = \"aes256gcm16\"",
            "cipher = \"des\"",
            "there are aes128gcm16",
        ),
        ("spi = 0x2001", "spi = 0x1001", "there is no SA"),
        (
            "esn = true",
            "esn = true\nreplay_window = 5000",
            "from 32 to 4096",
        ),
        (
            "source = \"192.0.2.1\"",
            "source = \"2001:db8::1\"",
            "different IP versions",
        ),
    ];
    for (from, to, wanted) in cases {
        write_private(&config, &good.replacen(from, to, 1))?;
        let output = culvert(&lab.sides[0], &["reload"])?.output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{to} was taken");
        ensure!(
            text.contains(wanted) && text.contains("keymgr.toml:"),
            "{to}: {text}"
        );
        ensure!(
            load::ping(&lab, 5)?.received == 5,
            "what ran did not go on after {to}"
        );
    }
    lab.hup_keymgr(0)?;
    wait_for("the refusal in the status", Duration::from_secs(5), || {
        lab.sides[0]
            .keymgr_status()
            .is_ok_and(|status| status.refused.is_some())
    })?;
    write_private(&config, &good)?;
    lab.hup_keymgr(0)?;
    wait_for("the good file", Duration::from_secs(5), || {
        lab.sides[0]
            .keymgr_status()
            .is_ok_and(|status| status.refused.is_none())
    })?;
    ensure!(load::ping(&lab, 5)?.received == 5);
    Ok(())
}

fn daemons_run_once_and_as_root() -> Result<()> {
    let lab = started(Plan::default())?;
    let side = &lab.sides[0];
    for name in ["datapath", "keymgr"] {
        let again = |command: &mut Command| {
            command
                .arg("--config")
                .arg(side.folder.join(format!("{name}.toml")))
                .arg("--run-dir")
                .arg(&side.folder)
                .output()
        };
        let daemon = program(&format!("culvert-{name}"))?;
        let mut twice = side.namespace.command(&daemon);
        if name == "keymgr" {
            twice.arg("--state-dir").arg(side.folder.join("state"));
        }
        let output = again(&mut twice)?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success() && text.contains("running already (process"),
            "{text}"
        );

        let output = Command::new(&daemon).arg("--wrong").output()?;
        ensure!(output.status.code() == Some(2), "{output:?}");
    }
    // The built programs may lie where nobody but root can go.
    let copy = tempfile::tempdir()?;
    let (open, program) = (
        copy.path().join("culvert-datapath"),
        program("culvert-datapath")?,
    );
    std::fs::copy(program, &open)?;
    std::fs::write(copy.path().join("datapath.toml"), "wire = 'x'\n")?;
    for path in [copy.path(), &open] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    use std::os::unix::process::CommandExt;
    let output = Command::new(&open)
        .arg("--config")
        .arg(copy.path().join("datapath.toml"))
        .uid(65534)
        .gid(65534)
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("needs root"),
        "{text}"
    );
    Ok(())
}

fn status_and_reload() -> Result<()> {
    let mut lab = started(Plan::default())?;
    load::ping(&lab, 10)?;
    let side = &lab.sides[0];
    let output = culvert(side, &["status"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{output:?}");
    for wanted in ["wire0", "192.0.2.2", "0x00001001", "culvert"] {
        ensure!(text.contains(wanted), "no {wanted} in {text}");
    }
    let output = culvert(side, &["status", "--json"])?.output()?;
    let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        json["datapath"]["sas"][1]["packets"].as_u64() >= Some(10),
        "{json}"
    );

    let output = culvert(side, &["reload"])?.output()?;
    ensure!(output.status.success(), "{output:?}");

    lab.kill_datapath(0)?;
    let output = culvert(&lab.sides[0], &["status"])?.output()?;
    ensure!(!output.status.success(), "a dead datapath is no success");
    Ok(())
}
