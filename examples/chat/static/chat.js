// The page's side of the chat: text goes out as it was typed, JSON events come in.
const LOGGED_OUT = 4001;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 10000;

const ownName = document.querySelector(".chat").dataset.name;
const status = document.getElementById("status");
const messages = document.getElementById("messages");
const people = document.getElementById("people");
const count = document.getElementById("count");
const text = document.getElementById("text");
const send = document.getElementById("send");

let socket = null;
let delay = FIRST_DELAY;

function connect() {
  const address = new URL("/chat", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  socket = new WebSocket(address, "chat");
  socket.onopen = () => {
    delay = FIRST_DELAY;
    showStatus("open", "Connected");
  };
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.type === "message") {
      addMessage(event);
    } else {
      showPeople(event);
    }
  };
  socket.onclose = ({ code }) => leaveOrRetry(code);
}

async function leaveOrRetry(code) {
  showStatus("waiting", "Connection lost, trying again…");
  if (code === LOGGED_OUT || await isLoggedOut()) {
    location.assign("/");
    return;
  }
  // Spread over time, so that not all pages come back at once.
  setTimeout(connect, delay * (0.5 + Math.random() / 2));
  delay = Math.min(delay * 2, LONGEST_DELAY);
}

async function isLoggedOut() {
  try {
    return (await fetch("/me")).status === 403;
  } catch {
    return false;
  }
}

function showStatus(state, words) {
  status.dataset.state = state;
  status.textContent = words;
  send.disabled = state !== "open";
}

function showPeople({ names, joined, left }) {
  count.textContent = names.length;
  people.replaceChildren(...names.map((name) => {
    const item = makeElement("li", "", name);
    if (name === ownName) {
      item.append(makeElement("span", "you", " (you)"));
    }
    return item;
  }));
  if (joined) {
    append(makeElement("p", "news", `${joined} joined`));
  }
  if (left) {
    append(makeElement("p", "news", `${left} left`));
  }
}

function addMessage({ name, text }) {
  const item = makeElement("div", name === ownName ? "message own" : "message");
  const time = makeElement("time", "", new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  const line = makeElement("p", "by");
  line.append(makeElement("strong", "", name), " ", time);
  item.append(line, makeElement("p", "text", text));
  append(item);
}

function append(item) {
  const isAtEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 40;
  messages.append(item);
  if (isAtEnd) {
    messages.scrollTop = messages.scrollHeight;
  }
}

function makeElement(tag, className, content = "") {
  const element = document.createElement(tag);
  element.className = className;
  // textContent, never innerHTML: what others write is not to become part of the page's code.
  element.textContent = content;
  return element;
}

document.getElementById("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim() && socket.readyState === WebSocket.OPEN) {
    socket.send(text.value);
    text.value = "";
  }
  text.focus();
});

connect();
