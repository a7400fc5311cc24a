//! Plain SQLite in its own process, which writes on command.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use dormouse_runtime::Env;
use rusqlite::{Connection, params};

/// The argument that starts this program as the plain SQLite side.
pub const MODE: &str = "--plain-sqlite";

/// Threads that write at the same time, each to its own files.
pub const THREADS: usize = 16;

const VALUE: [u8; super::VALUE_BYTES] = [b'v'; super::VALUE_BYTES];

/// The handle of the plain SQLite process.
pub struct Plain {
    child: Child,
    commands: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Plain {
    /// Starts the process with this number of files, all open.
    pub fn start(folder: &Path, files: usize) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([MODE.as_ref(), folder.as_os_str(), files.to_string().as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process of this program starts");
        let commands = child.stdin.take().expect("piped");
        let replies = BufReader::new(child.stdout.take().expect("piped"));
        let mut plain = Self { child, commands, replies };
        plain.read_reply();
        plain
    }

    /// Runs one turn of this duration. Returns the writes per second.
    pub fn turn(&mut self, turn: Duration) -> f64 {
        writeln!(self.commands, "{}", turn.as_millis()).expect("the process reads commands");
        self.read_reply().parse().expect("a number")
    }

    fn read_reply(&mut self) -> String {
        let mut line = String::new();
        self.replies.read_line(&mut line).expect("the process replies");
        line.trim_end().to_owned()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // Its files are discarded, so it needs no clean shutdown.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes for each command, until standard input ends.
pub fn serve(folder: &Path, files: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut files: Vec<_> =
        (0..files).map(|number| open(&folder.join(format!("{number}.sqlite3")))).collect();
    println!("ready");
    for command in std::io::stdin().lines() {
        let turn = command.expect("a line").parse().expect("milliseconds");
        println!("{}", write(&mut files, Duration::from_millis(turn)));
    }
}

/// Opens a new file and writes to it once, so that no later write creates files.
fn open(path: &Path) -> Connection {
    let open = || {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.execute_batch("CREATE TABLE messages(seq INTEGER PRIMARY KEY, value BLOB)")?;
        insert(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok::<_, rusqlite::Error>(connection)
    };
    open().expect("the file is new")
}

fn insert(connection: &Connection) -> rusqlite::Result<usize> {
    connection.prepare_cached("INSERT INTO messages(value) VALUES (?1)")?.execute(params![VALUE])
}

fn write(files: &mut [Connection], turn: Duration) -> f64 {
    let env = Env::system();
    let started = env.boot();
    let share = files.len().div_ceil(THREADS);
    let written: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks_mut(share)
            .map(|files| {
                let env = env.clone();
                scope.spawn(move || {
                    let mut written = 0;
                    for file in (0..files.len()).cycle() {
                        if env.boot() - started >= turn {
                            break;
                        }
                        insert(&files[file]).expect("the disk has space");
                        written += 1;
                    }
                    written
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the writer thread succeeds")).sum()
    });
    written as f64 / (env.boot() - started).as_secs_f64()
}
