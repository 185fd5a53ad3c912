use super::*;
use crate::status::tests::{datapath, keymgr, negotiated};
use culvert_keymgr::leftovers::Leftovers;
use culvert_proto::channel::{Channel, Listener};
use culvert_proto::message::{KeymgrReply, KeymgrRequest};
use culvert_proto::policy::{Action, Geneve};

fn nothing() -> Found {
    Found {
        keymgr: None,
        datapath: None,
        settings: PathBuf::new(),
        left: Leftovers {
            held: false,
            kernel: 0,
        },
        pins: false,
        host_port: false,
    }
}

#[test]
fn what_it_means_is_said_whoever_answers() {
    let (policy, tunnel) = negotiated(9, Geneve::Either, None);
    let mut clear = policy.clone();
    clear.selector.remote = "192.0.2.77/32".parse().unwrap();
    clear.action = Action::Bypass;
    let mut both = nothing();
    let mut status = keymgr();
    status.tunnels = vec![tunnel.clone(), tunnel];
    status.tunnels[1].selector = clear.selector.clone();
    both.keymgr = Some(status);
    let mut status = datapath();
    status.policies.push(clear);
    both.datapath = Some(status);
    let text = warning(&both);
    for wanted in [
        "culvert-keymgr, culvert-datapath.",
        "IN CLEAR:\n  192.0.2.1 to 192.0.2.2\n  192.0.2.1 to 192.0.2.9\n",
        "until culvert-keymgr and culvert-datapath are started again",
    ] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(!text.contains("192.0.2.77"), "bypassed already:\n{text}");

    let mut guarded = nothing();
    guarded.pins = true;
    let text = warning(&guarded);
    assert!(
        text.contains("eBPF programs") && text.contains("No daemon runs to say"),
        "{text}"
    );
}

#[test]
fn only_yes_is_yes() {
    for (answer, yes) in [
        ("y\n", true),
        (" Yes \n", true),
        ("\n", false),
        ("", false),
        ("no\n", false),
    ] {
        assert_eq!(is_yes(answer), yes, "{answer}");
    }
}

#[test]
fn nothing_is_nothing() {
    assert!(nothing().is_nothing());
    let mut held = nothing();
    held.left.held = true;
    assert!(!held.is_nothing());
    let mut kernel = nothing();
    kernel.left.kernel = 2;
    assert!(!kernel.is_nothing() && kernel.parts()[0].starts_with("2 SAs"));
}

#[test]
fn settings_that_are_missing_are_asked_for_before_anything_ends() {
    let run = tempfile::tempdir().unwrap();
    let settings = run.path().join("datapath.toml");
    assert!(Found::look(Some(&settings), run.path()).is_err());
    let pins = run.path().join("pins");
    std::fs::create_dir(&pins).unwrap();
    let text = format!(
        "wire = \"eth1\"\nhost_interface = \"cvnone0\"\npins = \"{}\"\n",
        pins.display()
    );
    std::fs::write(&settings, text).unwrap();
    assert!(
        Found::look(Some(&settings), run.path())
            .unwrap()
            .is_nothing()
    );
    std::fs::write(pins.join("PEERS"), "").unwrap();
    assert!(Found::look(Some(&settings), run.path()).unwrap().pins);
    std::fs::write(&settings, "wire = 1\n").unwrap();
    assert!(Found::look(Some(&settings), run.path()).is_err());
}

#[test]
fn who_refuses_to_end_stops_all() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let run = tempfile::tempdir().unwrap();
    let listener = Listener::bind(&run.path().join(KEYMGR_SOCKET)).unwrap();
    let server = std::thread::spawn(move || {
        let mut channel: Channel = listener.accept().unwrap();
        channel
            .greeted::<KeymgrRequest, KeymgrReply>("test")
            .unwrap();
        let request = channel.receive().unwrap();
        assert!(matches!(request, Some(KeymgrRequest::End)));
        channel
            .send(&KeymgrReply::Refused("busy".to_owned()))
            .unwrap();
    });
    let mut found = nothing();
    found.keymgr = Some(keymgr());
    let mut steps = Vec::new();
    let error = take_down(&found, run.path(), |step| {
        steps.push(step);
        Ok(())
    });
    assert!(error.unwrap_err().to_string().contains("busy"));
    assert!(steps.is_empty());
    server.join().unwrap();
}

#[test]
fn a_socket_or_a_lock_that_is_held_is_a_daemon() {
    let run = tempfile::tempdir().unwrap();
    let socket = run.path().join(KEYMGR_SOCKET);
    assert!(has_ended(KEYMGR, run.path(), &socket).unwrap());
    let lock = Lock::take(run.path(), KEYMGR).unwrap();
    assert!(!has_ended(KEYMGR, run.path(), &socket).unwrap());
    drop(lock);
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(!has_ended(KEYMGR, run.path(), &socket).unwrap());
    drop(listener);
    // A dead one's socket is still there.
    assert!(has_ended(KEYMGR, run.path(), &socket).unwrap());
}

#[test]
fn errors_of_the_programs_are_shown() {
    let mut command = Command::new("sh");
    let error = remove(command.args(["-c", "echo stop it first >&2; exit 1"])).unwrap_err();
    assert_eq!(error.to_string(), "stop it first");
    let error = remove(&mut Command::new("culvert-none")).unwrap_err();
    assert!(error.to_string().contains("cannot run culvert-none"));
    remove(Command::new("true").arg("x")).unwrap();
}
