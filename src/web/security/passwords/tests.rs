use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use futures_util::FutureExt;

use super::*;

/// Returns a hash with the lowest cost.
fn hash_of(password: &str) -> PasswordHash {
    bcrypt::hash(password, 4).unwrap().parse().unwrap()
}

fn header(user: &str, password: &str) -> HeaderValue {
    let pair = BASE64_STANDARD.encode(format!("{user}:{password}"));
    HeaderValue::from_str(&format!("Basic {pair}")).unwrap()
}

fn client(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// Returns passwords with one user, `ann` with the password `right`, and the number of checks
/// made.
fn counted() -> (Arc<Passwords>, Arc<AtomicUsize>) {
    let checks = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&checks);
    let check = move |password: &Secret, hash: &PasswordHash| {
        counter.fetch_add(1, Ordering::SeqCst);
        bcrypt::verify(password.expose(), &hash.text).unwrap()
    };
    let users = BTreeMap::from([("ann".to_owned(), hash_of("right"))]);
    (
        Arc::new(Passwords::checked_by(
            users,
            Arc::new(check),
            PasswordMemory::default(),
        )),
        checks,
    )
}

async fn admit(passwords: &Passwords, user: &str, password: &str) -> Verdict {
    passwords
        .admit(Some(&header(user, password)), client(1))
        .await
}

#[tokio::test]
async fn a_right_password_costs_one_check_and_a_wrong_one_one_each() {
    let (passwords, checks) = counted();
    for _ in 0..5 {
        assert_eq!(admit(&passwords, "ann", "right").await, Verdict::Welcome);
    }
    assert_eq!(checks.load(Ordering::SeqCst), 1);
    for _ in 0..3 {
        assert_eq!(admit(&passwords, "ann", "wrong").await, Verdict::Refused);
    }
    assert_eq!(checks.load(Ordering::SeqCst), 4);
    assert_eq!(admit(&passwords, "ann", "right").await, Verdict::Welcome);
    assert_eq!(checks.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn an_unknown_user_costs_a_check_of_the_same_kind() {
    let (passwords, checks) = counted();
    assert_eq!(admit(&passwords, "bob", "right").await, Verdict::Refused);
    assert_eq!(checks.load(Ordering::SeqCst), 1);
    let real = bcrypt::HashParts::from_str(&passwords.users["ann"].text).unwrap();
    let decoy = bcrypt::HashParts::from_str(&passwords.decoy.text).unwrap();
    assert_eq!(decoy.get_cost(), real.get_cost());
}

#[tokio::test]
async fn what_is_no_basic_authentication_costs_nothing() {
    let (passwords, checks) = counted();
    let no_colon = BASE64_STANDARD.encode("ann");
    let no_text = BASE64_STANDARD.encode(b"ann:\xff");
    for wrong in [
        String::new(),
        "Basic".to_owned(),
        "Basic !".to_owned(),
        format!("Basic {no_colon}"),
        format!("Basic {no_text}"),
        "Bearer YW5uOnJpZ2h0".to_owned(),
    ] {
        let header = HeaderValue::from_str(&wrong).unwrap();
        let verdict = passwords.admit(Some(&header), client(1)).await;
        assert_eq!(verdict, Verdict::Refused, "{wrong}");
    }
    assert_eq!(passwords.admit(None, client(1)).await, Verdict::Refused);
    assert_eq!(checks.load(Ordering::SeqCst), 0);
    let lower_case = HeaderValue::from_static("basic YW5uOnJpZ2h0");
    let verdict = passwords.admit(Some(&lower_case), client(1)).await;
    assert_eq!(verdict, Verdict::Welcome);
}

#[tokio::test]
async fn those_who_come_at_once_with_the_same_password_cost_one_check() {
    let (passwords, checks) = counted();
    let asking = (0..WAITING_OF_ONE).map(|_| admit(&passwords, "ann", "right"));
    let verdicts = futures_util::future::join_all(asking).await;
    assert_eq!(verdicts, [Verdict::Welcome; WAITING_OF_ONE]);
    assert_eq!(checks.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_right_password_is_remembered_before_the_next_one_has_its_turn() {
    let (passwords, checks) = counted();
    let mut first = Box::pin(admit(&passwords, "ann", "right"));
    // The check begins, and the request is not polled any more.
    let _ = (&mut first).now_or_never();
    let slot = passwords.memory.0.queue_up(client(2)).unwrap();
    drop(slot.await);
    assert_eq!(admit(&passwords, "ann", "right").await, Verdict::Welcome);
    assert_eq!(checks.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_is_checked_one_at_a_time_and_keeps_nobody_out_for_long() {
    let at_once = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&at_once);
    let check = move |password: &Secret, _: &PasswordHash| {
        assert_eq!(counter.fetch_add(1, Ordering::SeqCst), 0);
        std::thread::sleep(Duration::from_millis(5));
        counter.fetch_sub(1, Ordering::SeqCst);
        password.expose() == "right"
    };
    let users = BTreeMap::from([("ann".to_owned(), hash_of("right"))]);
    let memory = PasswordMemory::default();
    let passwords = Arc::new(Passwords::checked_by(users, Arc::new(check), memory));
    let guesses: Vec<_> = (0..100)
        .map(|n| {
            let passwords = Arc::clone(&passwords);
            tokio::spawn(async move { admit(&passwords, "ann", &format!("guess {n}")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    // Another client still gets its slot.
    let other = header("ann", "right");
    let verdict = passwords.admit(Some(&other), client(2)).await;
    assert_eq!(verdict, Verdict::Welcome);
    let mut busy = 0;
    for guess in guesses {
        match guess.await.unwrap() {
            Verdict::Welcome => panic!("a guess was right"),
            Verdict::Refused => {}
            Verdict::Busy => busy += 1,
        }
    }
    assert!(busy > 0, "the queue of one client is bounded");
    assert!(passwords.memory.0.queue.lock().waiting.is_empty());
}

/// A queue in which a check is under way.
fn queue() -> (Arc<Memory>, CheckSlot) {
    let memory = PasswordMemory::default().0;
    let slot = memory.queue_up(client(0)).unwrap();
    (memory, slot.now_or_never().unwrap().unwrap())
}

#[test]
fn one_client_cannot_fill_the_queue_nor_many_overfill_it() {
    let (memory, slot) = queue();
    let mut all: Vec<_> = (0..WAITING_OF_ONE)
        .map(|_| memory.queue_up(client(1)).unwrap())
        .collect();
    assert!(memory.queue_up(client(1)).is_none());
    all.extend((2..).map_while(|n| memory.queue_up(client(n))));
    assert_eq!(all.len(), WAITING);
    // Clients that have left take no place.
    all.truncate(WAITING - 1);
    assert!(memory.queue_up(client(99)).is_some());
    drop((all, slot));
    let queue = memory.queue.lock();
    assert!(queue.waiting.is_empty() && !queue.is_busy);
}

#[test]
fn who_has_guessed_gives_way_to_who_has_not_and_all_to_who_was_right() {
    let (memory, slot) = queue();
    let (worst, new, known) = (client(1), client(20), client(30));
    for client in (1..=4).map(client).chain([worst]) {
        memory.queue.lock().take_note(client, false);
    }
    memory.queue.lock().take_note(known, true);
    let mut guesses: Vec<_> = (0..WAITING)
        .map(|n| {
            memory
                .queue_up(client(1 + (n / WAITING_OF_ONE) as u8))
                .unwrap()
        })
        .collect();

    let mut new = memory.queue_up(new).unwrap();
    let mut known = memory.queue_up(known).unwrap();
    assert!(memory.queue_up(worst).is_none());
    let mut has_gone = |n: usize| {
        let slot = guesses[n].try_recv();
        matches!(slot, Err(oneshot::error::TryRecvError::Closed))
    };
    // The worst client loses its last places.
    let gone: Vec<_> = (0..WAITING).filter(|n| has_gone(*n)).collect();
    assert_eq!(gone, [2, 3]);

    drop(slot);
    let slot = known.try_recv().unwrap();
    assert!(new.try_recv().is_err());
    drop(slot);
    new.try_recv().unwrap();
}

#[test]
fn a_client_that_was_right_is_not_forgotten_for_many_that_were_wrong() {
    let mut queue = Queue::default();
    queue.take_note(client(1), true);
    for n in 0..=u16::MAX {
        queue.take_note(IpAddr::from([10, 0, (n >> 8) as u8, n as u8]), false);
    }
    assert_eq!(queue.wrongs.len(), KNOWN_CLIENTS);
    assert_eq!(queue.wrongs_of(client(1)), -CREDIT);
}

#[tokio::test]
async fn a_right_password_stays_known_when_the_file_changes_and_an_old_one_does_not() {
    let (before, checks) = counted();
    assert_eq!(admit(&before, "ann", "right").await, Verdict::Welcome);
    let after = |password: &str| {
        let users = match password {
            "" => BTreeMap::new(),
            "right" => before.users.clone(),
            _ => BTreeMap::from([("ann".to_owned(), hash_of(password))]),
        };
        Passwords::checked_by(users, Arc::clone(&before.check), before.memory.clone())
    };
    assert_eq!(
        admit(&after("right"), "ann", "right").await,
        Verdict::Welcome
    );
    assert_eq!(checks.load(Ordering::SeqCst), 1);
    assert_eq!(admit(&after("new"), "ann", "right").await, Verdict::Refused);
    assert_eq!(admit(&after(""), "ann", "right").await, Verdict::Refused);
}

#[test]
fn a_network_of_one_site_is_one_client() {
    let network = |address: &str| network(address.parse().unwrap());
    assert_eq!(network("2001:db8:1:2::3"), network("2001:db8:1:2:ffff::9"));
    assert_ne!(network("2001:db8:1:2::3"), network("2001:db8:1:3::3"));
    assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
}

#[tokio::test]
async fn only_so_many_pairs_are_remembered_and_none_in_clear() {
    let (passwords, _) = counted();
    let hash = hash_of("right");
    for n in 0..REMEMBERED + 10 {
        let tag = passwords.tag("ann", &hash, &Secret::new(format!("password {n}")));
        passwords.memory.0.right.add(tag);
    }
    assert_eq!(passwords.memory.0.right.0.lock().len(), REMEMBERED);
    let remembered = format!("{:?}", passwords.memory.0.right.0.lock());
    assert!(!remembered.contains("password"), "{remembered}");
    // The parts of two pairs cannot run into one another.
    let tag = |user: &str, password: &str| passwords.tag(user, &hash, &Secret::new(password));
    assert_ne!(tag("a", "bc").as_ref(), tag("ab", "c").as_ref());
}

#[test]
fn hashes_of_other_tools_are_taken_and_others_are_refused() {
    let rest = "10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";
    for version in ["2a", "2b", "2y"] {
        let hash: PasswordHash = format!("${version}${rest}").parse().unwrap();
        assert_eq!(
            (hash.cost, format!("{hash:?}")),
            (10, "<secret>".to_owned())
        );
    }
    for wrong in ["", "secret", "$1$ab$cd", &format!("$2b$03{}", &rest[2..])] {
        let error = wrong.parse::<PasswordHash>().unwrap_err();
        assert_eq!(error, HashError::Malformed, "{wrong}");
    }
    let error = format!("$2b$20{}", &rest[2..])
        .parse::<PasswordHash>()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "has the cost 20, with which one check takes a minute; use 10 to 14"
    );
}
