// Everything that is said, in both languages. Knows nothing about the page.
export const TEXTS = {
  en: {
    loginHint: "Log in with the account of your organisation.",
    username: "User name", password: "Password", logIn: "Log in", logOut: "Log out",
    other: "中文", skip: "Skip to the message field", conversations: "Conversations",
    newConversation: "New conversation", messages: "Messages", message: "Message",
    placeholder: "Ask something. Enter sends, Shift+Enter begins a line.",
    send: "Send", stop: "Stop", you: "You", assistant: "Assistant",
    privacy: "Answers come from a small model on this machine and may be wrong. Nothing leaves your organisation.",
    waiting: "Waiting …", queued: "Place {position} in the queue", stopped: "Stopped.",
    cutOff: "The answer reached its length limit.", rename: "Rename", remove: "Delete",
    askTitle: "A new title:", askRemove: "Delete this conversation for good?",
    lost: "The connection was lost.", again: "Your session has ended; log in again.",
  },
  zh: {
    loginHint: "请使用本单位账号登录。",
    username: "用户名", password: "密码", logIn: "登录", logOut: "退出登录",
    other: "English", skip: "跳到输入框", conversations: "会话",
    newConversation: "新会话", messages: "消息", message: "消息",
    placeholder: "请输入问题。回车发送，Shift+回车换行。",
    send: "发送", stop: "停止", you: "我", assistant: "助手",
    privacy: "回答由本机上的小模型生成，可能有误。内容不会离开本单位。",
    waiting: "请稍候……", queued: "排队第 {position} 位", stopped: "已停止。",
    cutOff: "回答已达到长度上限。", rename: "重命名", remove: "删除",
    askTitle: "新标题：", askRemove: "确定要永久删除该会话吗？",
    lost: "连接已中断。", again: "登录已失效，请重新登录。",
  },
};
