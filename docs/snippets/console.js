const socket = new WebSocket('ws://127.0.0.1:8000/ws');
socket.onmessage = (event) => console.log(event.data);
socket.onopen = () => socket.send('Hello back');
