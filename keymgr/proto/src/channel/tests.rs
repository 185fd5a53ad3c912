use super::*;
use crate::message::Update;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

fn pair() -> (Channel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Channel::new(ours).unwrap(), theirs)
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn messages_and_descriptors_arrive() {
    if !root() {
        return;
    }
    let (mut ours, theirs) = pair();
    let mut theirs = Channel::new(theirs).unwrap();
    ours.send(&DatapathRequest::Status).unwrap();
    let file = tempfile::tempfile().unwrap();
    ours.send_with(&DatapathRequest::Region, file.as_fd())
        .unwrap();
    ours.send(&DatapathRequest::Update(Update::default()))
        .unwrap();
    drop(ours);
    assert!(matches!(
        theirs.receive().unwrap(),
        Some(DatapathRequest::Status)
    ));
    assert!(theirs.take_descriptor().is_none());
    assert!(matches!(
        theirs.receive().unwrap(),
        Some(DatapathRequest::Region)
    ));
    assert!(theirs.take_descriptor().is_some());
    assert!(matches!(
        theirs.receive().unwrap(),
        Some(DatapathRequest::Update(_))
    ));
    assert!(theirs.receive::<DatapathRequest>().unwrap().is_none());
}

#[test]
fn bad_messages_are_refused() {
    if !root() {
        return;
    }
    let (mut ours, mut theirs) = pair();
    theirs.write_all(&u32::MAX.to_le_bytes()).unwrap();
    assert!(matches!(
        ours.receive::<DatapathRequest>(),
        Err(ChannelError::TooLong(_))
    ));

    let (mut ours, mut theirs) = pair();
    theirs.write_all(&[3, 0, 0, 0, 250, 1, 2]).unwrap();
    assert!(matches!(
        ours.receive::<DatapathRequest>(),
        Err(ChannelError::Garbage(_))
    ));

    let (mut ours, mut theirs) = pair();
    theirs.write_all(&[30, 0, 0, 0, 1]).unwrap();
    drop(theirs);
    assert!(matches!(
        ours.receive::<DatapathRequest>(),
        Err(ChannelError::CutOff)
    ));
}

#[test]
fn another_version_is_named() {
    if !root() {
        return;
    }
    let (mut ours, theirs) = pair();
    let mut theirs = Channel::new(theirs).unwrap();
    let old = Hello {
        version: VERSION + 1,
        program: "culvert-datapath 9".to_owned(),
    };
    theirs.send(&DatapathReply::Hello(old)).unwrap();
    let error = ours
        .greet::<DatapathRequest, DatapathReply>("test")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("culvert-datapath 9") && error.contains("same release"),
        "{error}"
    );
}

#[test]
fn the_socket_is_roots_and_the_lock_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.sock");
    let listener = Listener::bind(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(listener);
    let error = Channel::connect(&path, "culvert-datapath")
        .unwrap_err()
        .to_string();
    assert!(error.contains("is culvert-datapath running"), "{error}");

    let lock = Lock::take(directory.path(), "x").unwrap();
    let error = Lock::take(directory.path(), "x").unwrap_err().to_string();
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    drop(lock);
    Lock::take(directory.path(), "x").unwrap();
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/run");
    make_directory(&path).unwrap();
    make_directory(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let error = make_directory(&path).unwrap_err().to_string();
    assert!(error.contains("chmod go-w"), "{error}");
}
