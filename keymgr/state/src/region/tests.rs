use super::*;

const WINDOW: Kind = Kind::Inbound { window: 64 };

fn region() -> (tempfile::TempDir, std::path::PathBuf, Region) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sa-state");
    let (region, problem) = Region::open_or_create(&path).unwrap();
    assert_eq!(problem, None);
    (directory, path, region)
}

#[test]
fn state_survives_its_owner_and_its_user() {
    let (_directory, path, mut region) = region();
    // RFC 4303 §3.3.3 [3.3.3-manual-counter]
    let claim = region.claim([1; 16], Kind::Outbound).unwrap();
    assert!(claim.fresh);
    let user = Region::from_fd(region.as_fd().try_clone_to_owned().unwrap()).unwrap();
    user.words(claim.offset, claim.words).unwrap()[outbound::LEASED].store(77, Ordering::Relaxed);
    drop((user, region));

    let (mut region, problem) = Region::open_or_create(&path).unwrap();
    assert_eq!(problem, None);
    let again = region.claim([1; 16], Kind::Outbound).unwrap();
    assert_eq!(
        again,
        Claim {
            fresh: false,
            ..claim
        }
    );
    let words = region.words(again.offset, again.words).unwrap();
    assert_eq!(words[outbound::LEASED].load(Ordering::Relaxed), 77);
    assert!(region.claim([2; 16], WINDOW).unwrap().offset >= claim.offset + claim.words);
}

#[test]
fn the_owner_sees_the_users_heartbeat() {
    let (_directory, path, region) = region();
    let user = Region::from_fd(region.as_fd().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(region.last_beat(), 0);
    user.beat(1234);
    assert_eq!(region.last_beat(), 1234);
    drop(region);
    assert_eq!(Region::open_or_create(&path).unwrap().0.last_beat(), 1234);
}

#[test]
fn the_file_is_roots() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, path, _region) = region();
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_removed_and_added_again_goes_on() {
    let (_directory, _, mut region) = region();
    let claim = region.claim([1; 16], WINDOW).unwrap();
    region.retire(&[1; 16]);
    let again = region.claim([1; 16], WINDOW).unwrap();
    assert_eq!((again.offset, again.fresh), (claim.offset, false));
}

#[test]
fn a_running_window_does_not_change_its_size() {
    let (_directory, _, mut region) = region();
    region.claim([1; 16], WINDOW).unwrap();
    let error = region
        .claim([1; 16], Kind::Inbound { window: 128 })
        .unwrap_err();
    assert!(error.to_string().contains("64 packets"), "{error}");
}

#[test]
fn a_region_of_another_boot_or_release_is_not_taken_over() {
    for (at, wanted) in [
        (BOOT_AT, "reboot"),
        (VERSION_AT, "release"),
        (MAGIC_AT, "no SA state"),
    ] {
        let (_directory, path, mut region) = region();
        region.claim([1; 16], Kind::Outbound).unwrap();
        region.word(at).fetch_add(1, Ordering::Relaxed);
        drop(region);
        let (mut region, problem) = Region::open_or_create(&path).unwrap();
        assert!(problem.unwrap().contains(wanted));
        assert!(region.claim([1; 16], Kind::Outbound).unwrap().fresh);
    }
}

#[test]
fn words_outside_are_refused() {
    let (_directory, _, region) = region();
    for (offset, words) in [
        (0, 8),
        (u32::MAX, 8),
        (u32::try_from(LENGTH).unwrap() - 4, 8),
    ] {
        assert!(region.words(offset, words).is_err());
    }
    let file = tempfile::tempfile().unwrap();
    assert!(Region::from_fd(file.into()).is_err());
}

#[test]
fn a_key_manager_that_died_while_claiming_leaves_no_half_entry() {
    let (_directory, path, mut region) = region();
    region.claim([1; 16], Kind::Outbound).unwrap();
    // Everything of the second entry but its state, which comes last.
    let half = region.claim([2; 16], Kind::Outbound).unwrap();
    region.entry(1, STATE).store(FREE, Ordering::Relaxed);
    drop(region);
    let (mut region, _) = Region::open_or_create(&path).unwrap();
    let third = region.claim([3; 16], Kind::Outbound).unwrap();
    assert!(third.fresh && third.offset >= half.offset + half.words);
    assert!(!region.knows(&[2; 16]));
}

#[test]
fn a_damaged_directory_is_not_taken_over() {
    type Spoil = fn(&Region);
    let spoils: [(&str, Spoil); 5] = [
        ("more entries than there can be", |r| {
            r.word(NEXT_ENTRY_AT).store(u64::MAX, Ordering::Relaxed);
        }),
        ("words beyond the end", |r| {
            r.word(NEXT_WORD_AT).store(u64::MAX, Ordering::Relaxed);
        }),
        ("words in the directory", |r| {
            r.entry(0, OFFSET)
                .store(DIRECTORY as u64, Ordering::Relaxed);
        }),
        ("a kind of another size", |r| {
            r.entry(1, KIND).store(4096, Ordering::Relaxed);
        }),
        ("two on the same words", |r| {
            let first = r.entry(0, OFFSET).load(Ordering::Relaxed);
            r.entry(1, OFFSET).store(first, Ordering::Relaxed);
        }),
    ];
    for (what, spoil) in spoils {
        let (_directory, path, mut region) = region();
        region.claim([1; 16], Kind::Outbound).unwrap();
        region.claim([2; 16], WINDOW).unwrap();
        spoil(&region);
        drop(region);
        let (region, problem) = Region::open_or_create(&path).unwrap();
        assert!(
            problem.is_some_and(|text| text.contains("damaged")),
            "{what}"
        );
        assert!(!region.knows(&[1; 16]), "{what}");
    }
}

#[test]
fn a_file_that_others_could_write_is_not_taken_over() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, path, _region) = region();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
    let (_, problem) = Region::open_or_create(&path).unwrap();
    assert!(problem.is_some_and(|text| text.contains("others")));
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn when_there_is_no_room_the_first_retired_go_first() {
    let (_directory, path, mut region) = region();
    let claims: Vec<_> = (1..=4)
        .map(|key| region.claim([key; 16], Kind::Outbound).unwrap())
        .collect();
    region.claim([9; 16], WINDOW).unwrap();
    // 3 goes first, comes back, and goes again, last.
    for key in [3, 2, 1, 9] {
        region.retire(&[key; 16]);
    }
    region.claim([3; 16], Kind::Outbound).unwrap();
    region.retire(&[3; 16]);
    region
        .word(claims[1].offset as usize + outbound::LEASED)
        .store(7, Ordering::Relaxed);
    region
        .word(NEXT_WORD_AT)
        .store(LENGTH as u64, Ordering::Relaxed);
    drop(region);

    let (mut region, problem) = Region::open_or_create(&path).unwrap();
    assert_eq!(problem, None);
    for (key, wanted) in [(11, 2), (12, 1), (13, 3)] {
        let claim = region.claim([key; 16], Kind::Outbound).unwrap();
        let old: Claim = claims[wanted - 1];
        assert!(claim.fresh && claim.offset == old.offset, "{key}");
        assert_eq!(
            region.word(claim.offset as usize).load(Ordering::Relaxed),
            0
        );
        let gone = u8::try_from(wanted).unwrap();
        assert!(!region.knows(&[gone; 16]));
    }
    // 4 is in use, and 9 has another size.
    assert!(matches!(
        region.claim([14; 16], Kind::Outbound),
        Err(RegionError::Full)
    ));
}
