//! What ends, and what hangs.

use super::*;

#[test]
fn the_end_is_told_before_what_goes_with_it() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let _session = there.begin(7);
    here.hear_log(&["connected"]);
    let session = &here.session;
    for reqid in [1, 2, 3] {
        there.answer(&Reply::Done, || session.add_policy(&policy(reqid)));
    }

    // On another thread, somebody wants it so.
    let (request, _) = there.answer(&Reply::Done, || session.delete_policy(policy(1)));
    assert_eq!(request, Request::DeletePolicy(Box::new(policy(1))));

    thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let ask = |_| there.answer(&Reply::Done, || ()).0;
            [(); 3].map(ask)
        });
        // This thread began the session.
        assert_eq!(session.delete_policy(policy(2)), Status::Success);
        assert_eq!(session.flush_policies(), Status::Success);
        assert_eq!(
            asked.join().unwrap(),
            [
                Request::Ending,
                Request::DeletePolicy(Box::new(policy(2))),
                Request::FlushPolicies
            ]
        );
    });
}

#[test]
fn the_end_does_not_wait_for_a_silent_key_manager() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let _silent = there.incoming();
    let began = Instant::now();
    drop(here.session);
    assert!(began.elapsed() < END);
}

#[test]
fn one_call_waits_for_a_key_manager_that_hangs() {
    let (_home, there, here, _session) = connected();
    let session = &here.session;
    thread::scope(|scope| {
        let call = scope.spawn(|| session.add_sa(sa(1)));
        let _silent = there.accept(7);
        assert_eq!(call.join().unwrap(), Status::Failed);
    });
    here.hear_log(&["given up", "no answer within"]);
    here.hear_log(&["is not installed", "no answer within"]);

    // The next one is not even asked.
    let began = Instant::now();
    assert_eq!(session.delete_sa(&name(1)), Status::Success);
    assert!(began.elapsed() < Duration::from_secs(1));
    here.hear_log(&["is not removed yet", "is away"]);

    let (_session, _) = there.begin(7);
    here.hear_log(&["connected"]);
    let (request, ()) = there.answer(&Reply::Done, || ());
    assert_eq!(request, Request::DeleteSa(name(1)));
}

#[test]
fn nothing_is_told_after_the_end() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let _session = there.begin(7);
    here.hear_log(&["connected"]);
    let shared = Arc::clone(&here.session.shared);
    drop(here.session);
    shared.pass_on(&Event::Acquire(Acquire { reqid: 3 }));
    shared.log("too late");
    assert!(here.heard.try_recv().is_err());
}
