use super::*;
use disk::Memory;

fn drive(blocks: u64) -> Cd {
    let disc = Memory::new(Shape::of_bytes(blocks * BLOCK));
    disc.write(BLOCK, &[0x5a; 16]).unwrap();
    Cd::new(Some(Arc::new(disc)), None)
}

fn packet(bytes: &[u8]) -> [u8; 12] {
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    packet
}

fn ask(cd: &Cd, bytes: &[u8]) -> Outcome {
    cd.command(&packet(bytes))
}

/// The sense key.
fn failure(cd: &Cd, bytes: &[u8]) -> u8 {
    match ask(cd, bytes) {
        Outcome::Failed(sense) => sense.key(),
        other => panic!("{other:?}"),
    }
}

fn data(cd: &Cd, bytes: &[u8]) -> Vec<u8> {
    match ask(cd, bytes) {
        Outcome::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

fn sense_of(cd: &Cd) -> Sense {
    let sense = data(cd, &[3, 0, 0, 0, 18]);
    Sense(sense[2], sense[12], sense[13])
}

/// Past what it says after power-on.
fn ready(blocks: u64) -> Cd {
    let cd = drive(blocks);
    assert_eq!(failure(&cd, &[0]), 6);
    assert_eq!(sense_of(&cd), Sense::POWER_ON);
    assert_eq!(ask(&cd, &[0]), Outcome::Good);
    cd
}

#[test]
fn a_disc_is_read_to_its_end_and_no_further() {
    let cd = ready(300);
    assert_eq!(data(&cd, &[0x25]), [0, 0, 1, 43, 0, 0, 8, 0]);
    let read = Outcome::Read { at: BLOCK, len: 2 * BLOCK };
    assert_eq!(ask(&cd, &[0x28, 0, 0, 0, 0, 1, 0, 0, 2]), read);
    assert_eq!(ask(&cd, &[0xa8, 0, 0, 0, 0, 1, 0, 0, 0, 2]), read);
    assert_eq!(failure(&cd, &[0x28, 0, 0, 0, 1, 43, 0, 0, 2]), 5);
    assert_eq!(sense_of(&cd), Sense::NO_SUCH_ADDRESS);
    assert_eq!(
        ask(&cd, &[0xa8, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        Outcome::Failed(Sense::NO_SUCH_ADDRESS)
    );
    let mut bytes = [0; 4];
    cd.read(BLOCK, &mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 4]);
}

#[test]
fn the_tray_opens_unless_it_is_locked() {
    let cd = ready(16);
    assert_eq!(ask(&cd, &[0x1e, 0, 0, 0, 1]), Outcome::Good);
    assert_eq!(failure(&cd, &[0x1b, 0, 0, 0, 2]), 5);
    assert_eq!(sense_of(&cd), Sense::LOCKED);
    assert_eq!(ask(&cd, &[0x1e, 0, 0, 0, 0]), Outcome::Good);
    assert_eq!(ask(&cd, &[0x1b, 0, 0, 0, 2]), Outcome::Good);
    assert_eq!(data(&cd, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[5], 1);
    assert_eq!(failure(&cd, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), 2);
    assert_eq!(sense_of(&cd), Sense::TRAY_OPEN);
    assert_eq!(ask(&cd, &[0x1b, 0, 0, 0, 3]), Outcome::Good);
    assert_eq!(ask(&cd, &[0]), Outcome::Failed(Sense::DISC_CHANGED));
    assert_eq!(ask(&cd, &[0]), Outcome::Good);
    // A reset leaves the tray, and says what it was; a disc that comes after it is not news besides.
    ask(&cd, &[0x1b, 0, 0, 0, 2]);
    ask(&cd, &[0x1e, 0, 0, 0, 1]);
    cd.reset(Sense::UNIT_RESET);
    assert_eq!(data(&cd, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8])[5], 1, "quiet, and open");
    assert_eq!(sense_of(&cd), Sense::UNIT_RESET);
    assert_eq!(ask(&cd, &[0]), Outcome::Failed(Sense::TRAY_OPEN));
    assert!(!cd.state().locked);
    let empty = Cd::new(None, None);
    assert_eq!(ask(&empty, &[0]), Outcome::Failed(Sense::POWER_ON));
    assert_eq!((failure(&empty, &[0x25]), sense_of(&empty)), (2, Sense::NO_DISC));
}

#[test]
fn discs_are_changed() {
    let cd = ready(16);
    let disc = || -> Option<Arc<dyn Disk>> { Some(Arc::new(Memory::new(Shape::of_bytes(8192)))) };
    ask(&cd, &[0x1e, 0, 0, 0, 1]);
    assert!(!cd.insert(disc()), "locked");
    ask(&cd, &[0x1e, 0, 0, 0, 0]);
    ask(&cd, &[0x1b, 0, 0, 0, 2]);
    assert!(cd.insert(disc()));
    assert_eq!(cd.read(0, &mut [0]), Err(Sense::DISC_CHANGED), "of the disc before");
    assert_eq!(ask(&cd, &[0]), Outcome::Failed(Sense::DISC_CHANGED));
    assert_eq!(data(&cd, &[0x25]), [0, 0, 0, 3, 0, 0, 8, 0], "the tray is closed");
    assert!(cd.insert(None));
    assert_eq!(ask(&cd, &[0]), Outcome::Failed(Sense::NO_DISC));
    assert_eq!(cd.read(0, &mut [0]), Err(Sense::NO_DISC));
    cd.reset(Sense::UNIT_RESET);
    assert!(cd.insert(disc()));
    assert_eq!(ask(&cd, &[0]), Outcome::Failed(Sense::UNIT_RESET));
    assert_eq!(ask(&cd, &[0]), Outcome::Good);
}

#[test]
fn answers_are_cut_to_what_the_host_allows() {
    let cd = ready(16);
    assert_eq!(data(&cd, &[0x12, 0, 0, 0, 36]).len(), 36);
    assert_eq!(data(&cd, &[0x12, 0, 0, 0, 5]), [5, 0x80, 5, 2, 31]);
    let toc = data(&cd, &[0x43, 2, 0, 0, 0, 0, 0, 0, 20]);
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xaa, 0, 0, 0, 2, 16]);
    let sense = data(&cd, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 1, 0]);
    assert_eq!((sense.len(), sense[1], sense[8]), (28, 26, 0x2a));
    assert_eq!(failure(&cd, &[0x5a, 0, 0x0d, 0, 0, 0, 0, 1, 0]), 5);
    let features = data(&cd, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0]);
    assert_eq!(u32::from_be_bytes(features[..4].try_into().unwrap()) as usize + 4, features.len());
    assert_eq!(features[6..8], [0, 8]);
    assert_eq!((failure(&cd, &[0x55]), sense_of(&cd)), (5, Sense::NO_SUCH_COMMAND));
}
