use super::*;
use crate::Config;
use nic::Network;
use std::{
    sync::{Arc, Weak, atomic::AtomicBool, mpsc},
    thread,
    time::Duration,
};
use virtio::{fake::Board, feature::VERSION_1};

/// A network that does nothing by itself.
struct Wire;

impl Network for Wire {
    fn attach(&self, _: Weak<dyn Port>) {}
    fn wake(&self) {}
    fn pause(&self) {}
    fn resume(&self) {}
}

const CONTROL: u16 = 6;

fn card() -> (Board, Arc<VirtioNet>) {
    let config = Config { mac: Mac([2; 6]), mtu: 1500, pairs: 3 };
    let card = VirtioNet::new(config, Arc::new(Wire));
    let board = Board::new(card.clone());
    board.start(VERSION_1 | feature::CTRL_VQ | feature::MQ, true);
    (board, card)
}

fn use_pairs(board: &Board, count: u8) {
    assert_eq!(board.call(CONTROL, &[4, 0, count, 0], 1), Some(vec![0]));
}

#[test]
fn a_pair_that_was_given_up_is_let_alone() {
    let (board, card) = card();
    use_pairs(&board, 3);
    let mut buffer = [0; 64];
    board.submit(5, &[0; 32], 0);
    assert!(card.take_from(2, &mut buffer).is_some());
    board.submit(5, &[0; 32], 0);
    board.submit(4, &[], 2048);
    // As by one who has read the number of pairs before it changed.
    use_pairs(&board, 2);
    assert_eq!(card.take_from(2, &mut buffer), None);
    assert!(!card.give_to(2, [0; header::LEN], &[&[1; 60]]));
    use_pairs(&board, 3);
    assert!(card.take_from(2, &mut buffer).is_some());
    assert!(card.give_to(2, [0; header::LEN], &[&[1; 60]]));
}

#[test]
fn a_command_waits_for_those_who_use_a_pair() {
    let (board, card) = card();
    use_pairs(&board, 3);
    for queue in [4, 5] {
        let (began, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let card = &card;
            scope.spawn(move || {
                card.lend(queue, |_| {
                    began.send(()).unwrap();
                    ends.recv().unwrap();
                    Ok(())
                })
            });
            begins.recv().unwrap();
            let before = board.used(CONTROL);
            board.submit(CONTROL, &[4, 0, 1, 0], 1);
            thread::sleep(Duration::from_millis(20));
            assert_eq!(board.used(CONTROL), before);
            end.send(()).unwrap();
            board.until("the answer", || board.used(CONTROL) != before);
        });
    }
}

/// The network finds a driver's error while the driver gives up a pair and starts over.
#[test]
fn errors_commands_and_resets_do_not_wait_for_each_other() {
    let (board, card) = card();
    let over = AtomicBool::new(false);
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        let (card, over, board) = (&card, &over, &board);
        scope.spawn(move || {
            // A hang is to be a failure.
            if finished.recv_timeout(Duration::from_secs(60)).is_err() {
                eprintln!("the card hangs");
                std::process::abort();
            }
        });
        scope.spawn(move || {
            let mut buffer = [0; 64];
            while !over.load(SeqCst) {
                let _ = card.take(&mut buffer);
                card.flush();
            }
        });
        for n in 0..20_000 {
            board.clear_rings();
            board.start(VERSION_1 | feature::CTRL_VQ | feature::MQ, true);
            // A chain that leads nowhere.
            board.describe(1, 0, 0, 16, 1, 0xffff);
            board.submit(CONTROL, &[4, 0, 2, 0], 1);
            board.offer(1, 0);
            board.ring(1);
            (0..n % 97 * 16).for_each(|_| std::hint::spin_loop());
            board.set_status(0);
        }
        over.store(true, SeqCst);
        done.send(()).unwrap();
    });
}
