//! A Unix socket as the console: one client at a time, and another after it.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use byte_stream::Input;

use super::feeder::Feeder;
use crate::{Failure, sockets};

/// A client that takes nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The socket, removed when dropped, and its client with it.
pub struct Server {
    path: PathBuf,
    listener: Option<UnixListener>,
    client: Client,
    /// What clients send goes there, until the stream is closed.
    feeds: Option<(Feeder, UnixStream)>,
}

/// The connection that there is at the moment.
#[derive(Clone, Debug, Default)]
pub struct Client(Arc<Mutex<Connection>>);

#[derive(Debug, Default)]
struct Connection {
    stream: Option<UnixStream>,
    /// There will be no other.
    ended: bool,
}

impl Server {
    /// Listens. A socket left by a process that has ended is replaced.
    pub fn open(option: &str, path: &Path) -> Result<Self, Failure> {
        let listener = sockets::listen(path).map_err(|(why, remedy)| {
            Failure::host(format!("{option}unix:{}: {why}; {remedy}", path.display()))
        })?;
        let client = Client::default();
        Ok(Self { path: path.into(), listener: Some(listener), client, feeds: None })
    }

    /// For output; what comes while no client is connected is lost.
    pub fn writer(&self) -> Client {
        self.client.clone()
    }

    /// Begins to accept clients.
    pub fn start(&mut self, input: Arc<dyn Input>) -> Result<(), Failure> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let (end, ended) = super::ends()?;
        let feeder = Feeder::start(input.clone())?;
        self.feeds = Some((feeder.clone(), end));
        let client = self.client.clone();
        super::spawn("console socket", move || {
            while super::wait(&listener, &ended) {
                let Ok((stream, _)) = listener.accept() else { continue };
                input.peer(true);
                client.serve(stream, &feeder);
                input.peer(false);
            }
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Someone else may have removed it.
        let _ = fs::remove_file(&self.path);
        if let Some((feeder, _)) = &self.feeds {
            feeder.end();
        }
        self.client.end();
    }
}

impl Client {
    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It goes, and nobody comes after it.
    fn end(&self) {
        let mut connection = self.lock();
        connection.ended = true;
        if let Some(stream) = &connection.stream {
            // Gone already, perhaps.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Until the client goes.
    fn serve(&self, mut stream: UnixStream, feeder: &Feeder) {
        let Ok(writer) = stream.try_clone() else { return };
        if writer.set_write_timeout(Some(PATIENCE)).is_err() {
            return;
        }
        {
            let mut connection = self.lock();
            if connection.ended {
                return;
            }
            connection.stream = Some(writer);
        }
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => feeder.send(&buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.lock().stream = None;
    }
}

impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Not under the lock: a client that takes nothing must not keep the next one out.
        let stream = self.lock().stream.as_ref().and_then(|s| s.try_clone().ok());
        if let Some(mut stream) = stream
            && stream.write_all(bytes).is_err()
        {
            // Its reader sees the end, and the next client may come.
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};

    struct Collect(Mutex<Sender<Vec<u8>>>);

    impl Input for Collect {
        fn receive(&self, bytes: &[u8]) -> usize {
            self.0.lock().unwrap().send(bytes.to_vec()).unwrap();
            bytes.len()
        }
        fn on_room(&self, _: Box<dyn Fn() + Send + Sync>) {}
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("sarang-{name}-{}.sock", std::process::id()))
    }

    #[test]
    fn one_client_after_another() {
        let path = scratch("clients");
        let mut server = Server::open("--console ", &path).unwrap();
        let mut writer = server.writer();
        writer.write_all(b"heard by nobody").unwrap();
        let (sender, receiver) = channel();
        server.start(Arc::new(Collect(Mutex::new(sender)))).unwrap();
        for _ in 0..2 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(b"key").unwrap();
            assert_eq!(receiver.recv().unwrap(), b"key");
            // What the client wrote was read, so it is the one that output goes to.
            writer.write_all(b"text").unwrap();
            let mut buffer = [0; 4];
            client.read_exact(&mut buffer).unwrap();
            assert_eq!(&buffer, b"text");
        }
        let mut last = UnixStream::connect(&path).unwrap();
        last.write_all(b"key").unwrap();
        assert_eq!(receiver.recv().unwrap(), b"key");
        drop(server);
        assert!(!path.exists());
        assert_eq!(last.read(&mut [0]).unwrap(), 0, "it hears of the end");
        assert!(receiver.recv().is_err(), "nobody reads any more");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let path = scratch("stale");
        drop(UnixListener::bind(&path).unwrap());
        let server = Server::open("--console ", &path).unwrap();
        let second = Server::open("--console ", &path).err().unwrap();
        assert!(second.line.contains("in use"), "{second:?}");
        drop(server);
    }

    #[test]
    fn a_file_in_the_way_is_kept() {
        let path = scratch("file");
        fs::write(&path, b"precious").unwrap();
        assert!(Server::open("--console ", &path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_file(&path).unwrap();
    }
}
